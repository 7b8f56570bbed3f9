import { Course, held, History, mainMetric } from '../src/history';
import { IClusterEvent } from '../src/schema';
import { device, run, snapshot } from './rows';

function event(time: number, rest: Partial<IClusterEvent>): IClusterEvent {
  return { stream: 's', seq: time, time, ...rest };
}

describe('held', () => {
  it('goes on with a value until the next one, and with the last to the end', () => {
    const { x, y } = held([100, 110], [50, 90], 90, 120);
    expect(x).toEqual([100, 109.5, 110, 120]);
    expect(y).toEqual([50, 50, 90, 90]);
  });

  it('begins with the value that held before the window', () => {
    const { x, y } = held([50, 95], [10, 20], 90, 100);
    expect([x[0], y[0]]).toEqual([90, 10]);
    expect([x[x.length - 1], y[y.length - 1]]).toEqual([100, 20]);
  });

  it('is empty where nothing was measured', () => {
    expect(held([], [], 0, 120)).toEqual({ x: [], y: [] });
  });
});

describe('History', () => {
  it('keeps the changes of devices, memory in percent', () => {
    const history = new History();
    const half = device('g0', { utilization: 70, memory_used: 8 * 1024 ** 3 });
    history.take(event(1000, { snapshot: snapshot({ devices: { g0: half } }) }), null);
    history.take(
      event(1001, { delta: { devices: { g0: { ...half, utilization: 80 } } } }),
      null
    );
    const { utilization, memory } = history.device('g0', 1001);
    expect(utilization.y).toEqual([70, 80]);
    expect(memory.y).toEqual([50, 50]);
  });

  it('stays bounded however long it runs', () => {
    const history = new History();
    for (let time = 0; time < 5000; time++) {
      history.take(event(time, { delta: { devices: { g0: device('g0') } } }), null);
    }
    const { x } = history.device('g0', 5000).utilization;
    expect(x.length).toBeLessThan(200);
    expect(x[0]).toBeGreaterThanOrEqual(4880);
  });

  it('follows metrics over the seconds of a run, and not its progress', () => {
    const history = new History();
    const before = snapshot({ runs: { r1: run('r1', { metrics: { loss: 2 } }) } });
    history.take(event(1010, { snapshot: before }), null);
    const progress = { done: 5, total: 9, unit: '', label: '' };
    const moved = run('r1', { metrics: { loss: 2 }, progress });
    history.take(event(1011, { delta: { runs: { r1: moved } } }), before);
    const better = run('r1', { metrics: { loss: 1 } });
    history.take(event(1012, { delta: { runs: { r1: better } } }), before);
    expect(history.run('r1').get('loss')).toMatchObject({ x: [10, 12], y: [2, 1] });
  });

  it('forgets what is gone', () => {
    const history = new History();
    history.take(event(1000, { snapshot: snapshot({ runs: { r1: run('r1') } }) }), null);
    history.take(
      event(1001, { delta: { devices: { g0: null }, runs: { r1: null } } }),
      null
    );
    expect(history.device('g0', 1001).utilization.x).toEqual([]);
    history.take(event(1002, { snapshot: snapshot({ devices: {} }) }), null);
    expect(history.device('g1', 1002).utilization.x).toEqual([]);
  });

  it('puts what the server remembers before what it has seen, once', () => {
    const history = new History();
    history.take(event(1000, { snapshot: snapshot() }), null);
    const metrics = { loss: 1 };
    history.take(event(1003, { delta: { runs: { r1: run('r1', { metrics }) } } }), null);
    history.seed({
      devices: { g0: { time: [998, 1000], utilization: [7, 0], memory: [0, 0] } },
      runs: { r1: { loss: { x: [1, 2], y: [3, 2] } } }
    });
    expect(history.device('g0', 1000).utilization).toEqual({ x: [998, 1000], y: [7, 0] });
    expect(history.run('r1').get('loss')).toMatchObject({ x: [1, 2, 3], y: [3, 2, 1] });
  });
});

describe('Course', () => {
  it('drops every second point when it is full, the first stays', () => {
    const course = new Course();
    for (let x = 0; x < 10_000; x++) {
      course.add(x, x);
    }
    expect(course.x.length).toBeLessThanOrEqual(240);
    expect(course.x[0]).toBe(0);
    expect(course.x[course.x.length - 1]).toBeGreaterThan(9900);
    expect(new Set(course.x.slice(1).map((x, i) => x - (course.x[i] ?? 0))).size).toBe(1);
  });
});

describe('mainMetric', () => {
  it('is a loss where there is one, and no speed', () => {
    expect(mainMetric(['steps_per_second', 'val_loss', 'loss'])).toBe('loss');
    expect(mainMetric(['accuracy', 'val_loss'])).toBe('val_loss');
    expect(mainMetric(['steps_per_second', 'accuracy'])).toBe('accuracy');
    expect(mainMetric(['steps_per_second'])).toBeNull();
  });
});
