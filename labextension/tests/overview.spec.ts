import {
  counted,
  deviceName,
  deviceState,
  firstPlace,
  load,
  mayEnd,
  runLines,
  runsOn,
  sortedRuns,
  totals
} from '../src/overview';
import { lastReaders } from '../src/datasets';
import { batch, device, lease, request, run, snapshot } from './rows';

const holder = (user: string) => ({ lease: 'l1', user, label: '', run: '' });
const outside = [{ pid: 7, memory: 0, name: 'python', user: 'eve' }];

describe('deviceState', () => {
  it.each([
    ['free', {}],
    ['mine', { holder: holder('ada') }],
    ['held', { holder: holder('bob') }],
    ['outside', { outside }],
    ['lost', { node: 'unknown' }]
  ])('is %s', (state, rest) => {
    expect(deviceState(device('g0', rest), snapshot())).toBe(state);
  });

  it('of a node that is lost is lost, whoever holds it', () => {
    const { nodes } = snapshot();
    const lost = snapshot({ nodes: { n1: { ...nodes['n1']!, state: 'lost' } } });
    expect(deviceState(device('g0', { holder: holder('ada') }), lost)).toBe('lost');
  });
});

describe('totals', () => {
  it('counts accelerators and leaves CPU slots out where there are any', () => {
    const devices = {
      g0: device('g0'),
      g1: device('g1', { holder: holder('bob') }),
      g2: device('g2', { outside }),
      c0: device('c0', { kind: 'cpu' })
    };
    const queue = { q1: request('q1') };
    expect(totals(snapshot({ devices, queue }))).toEqual({
      kind: 'gpu',
      devices: 3,
      free: 1,
      waiting: 1
    });
  });

  it('counts CPU slots where there is nothing else', () => {
    const devices = { c0: device('c0', { kind: 'cpu' }) };
    expect(totals(snapshot({ devices }))).toMatchObject({
      kind: 'cpu',
      devices: 1,
      free: 1
    });
  });
});

test('devices are counted by state, and what is measured adds up', () => {
  const cluster = snapshot({
    devices: {
      g0: device('g0', { utilization: 50, memory_used: 1024, power: 100 }),
      g1: device('g1', { holder: holder('bob'), utilization: 100, power: 50 }),
      g2: device('g2', { utilization: null, memory_used: null }),
      c0: device('c0', { kind: 'cpu' })
    }
  });
  const { states, parts, free } = counted(cluster);
  expect(states).toEqual(['free', 'held', 'free']);
  expect(parts).toEqual([
    ['held', 1],
    ['free', 2]
  ]);
  expect(free).toBe(2);
  const memory = 2 * 16 * 1024 ** 3;
  expect(load(cluster)).toEqual({ utilization: 75, used: 1024, memory, power: 150 });
});

test('a device is named by kind and index, an unknown one by its id', () => {
  expect(deviceName(device('g3', { kind: 'simulated' }), 'g3')).toBe('GPU 3');
  expect(deviceName(undefined, 'GPU-123')).toBe('GPU-123');
});

test('live runs come first, then the newest; endpoints are apart', () => {
  const rows = [
    run('old', { state: 'succeeded', started: 1 }),
    run('new', { state: 'failed', started: 9 }),
    run('live', { started: 5 }),
    run('up', { kind: 'endpoint' }),
    run('broken', { kind: 'endpoint', state: 'failed', started: 2 }),
    run('gone', { kind: 'endpoint', state: 'stopped' })
  ];
  const { runs, endpoints } = sortedRuns(Object.fromEntries(rows.map(r => [r.id, r])));
  expect(runs.map(row => row.id)).toEqual(['live', 'new', 'old']);
  expect(endpoints.map(row => row.id)).toEqual(['up', 'broken']);
});

test('runs on a lease are its live ones', () => {
  const runs = {
    a: run('a'),
    b: run('b', { state: 'failed' }),
    c: run('c', { lease: 'l2' })
  };
  expect(runsOn(lease('l1'), snapshot({ runs })).map(row => row.id)).toEqual(['a']);
});

test.each([
  ['user', 'ada', true],
  ['user', 'bob', false],
  ['admin', 'bob', true],
  ['viewer', 'ada', false]
] as const)('a %s may end what %s has: %s', (role, owner, may) => {
  const { cluster } = snapshot();
  expect(mayEnd(snapshot({ cluster: { ...cluster, role } }), owner)).toBe(may);
});

test('one’s own place in the queue is the best of several, or none', () => {
  const queue = {
    q1: request('q1', { user: 'bob', position: 1 }),
    q3: request('q3', { position: 3 }),
    q2: request('q2', { position: 2 })
  };
  expect(firstPlace(snapshot({ queue }))).toBe(2);
  expect(firstPlace(snapshot({ queue: { q1: queue.q1 } }))).toBeNull();
});

test('a dataset was last read by the run that began last', () => {
  const runs = {
    r1: run('r1', { started: 10, detail: { data: ['a@1', 'b@1'] } }),
    r2: run('r2', { started: 20, detail: { data: ['a@2'] } }),
    r3: run('r3', { started: 30, detail: { data: 'a' } })
  };
  const readers = lastReaders(runs);
  expect([readers.get('a')?.id, readers.get('b')?.id]).toEqual(['r2', 'r1']);
});

describe('the list of runs', () => {
  const runs = [
    run('r1', { started: 3000 }),
    run('r2', { started: 2500, batch: 'b1' }),
    run('r3', { started: 2400, batch: 'b1', state: 'succeeded', ended: 2450 }),
    run('r4', { started: 900, state: 'failed', ended: 950, batch: 'forgotten' }),
    run('r5', { started: 800, state: 'succeeded', ended: 850 })
  ];
  const batches = {
    b1: batch('b1', { started: 2300 }),
    b2: batch('b2', { started: 850, state: 'ended', ended: 890 })
  };
  const keys = (opened: string[], ended: number) => {
    const { lines, left } = runLines(runs, batches, new Set(opened), ended);
    return [...lines.map(line => line.key), left];
  };

  it('has the runs of a batch below it when it is open', () => {
    expect(keys([], 9)).toEqual(['r1', 'b1', 'r4', 'b2', 'r5', 0]);
    expect(keys(['open:b1'], 9)).toEqual(['r1', 'b1', 'r2', 'r3', 'r4', 'b2', 'r5', 0]);
  });

  it('leaves out what ended long ago, a batch like a run', () => {
    expect(keys(['open:b1'], 1)).toEqual(['r1', 'b1', 'r2', 'r3', 'r4', 2]);
  });
});
