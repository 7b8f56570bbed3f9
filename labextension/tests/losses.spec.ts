import {
  cancelLosses,
  releaseLosses,
  stopBatchLosses,
  stopLosses,
  unreserveLosses
} from '../src/losses';
import { batch, lease, request, reservation, run, snapshot, trans } from './rows';

const progress = { done: 120, total: 500, unit: 'steps', label: '' };

test('releasing names the runs that end, how far they are, and the devices', () => {
  const view = snapshot({ runs: { r1: run('r1', { name: 'digits', progress }) } });
  const text = releaseLosses(lease('l1'), view, trans).join(' ');
  expect(text).toContain('The run digits ends (2 ranks, 120 of 500 steps done).');
  expect(text).toContain('not saved is lost');
  expect(text).toContain('GPU 0, GPU 1');
});

test('releasing an idle lease says that nothing runs on it', () => {
  const text = releaseLosses(lease('l1'), snapshot(), trans).join(' ');
  expect(text).toContain('Nothing is running on it.');
  expect(text).not.toContain('lost');
});

test('what belongs to somebody else says so', () => {
  const text = releaseLosses(lease('l1', { user: 'bob' }), snapshot(), trans).join(' ');
  expect(text).toContain('It belongs to bob.');
});

test('stopping a run says whether its lease stays', () => {
  const view = snapshot({
    leases: { l1: lease('l1'), l2: lease('l2', { scope: 'detached' }) }
  });
  expect(stopLosses(run('r1'), view, trans).join(' ')).toContain(
    'lease on its devices stays'
  );
  expect(stopLosses(run('r2', { lease: 'l2' }), view, trans).join(' ')).not.toContain(
    'stays'
  );
});

test('stopping an endpoint says what becomes of its address', () => {
  const text = stopLosses(run('r1', { kind: 'endpoint' }), snapshot(), trans).join(' ');
  expect(text).toContain('stops answering');
  const far = stopLosses(run('r1', { kind: 'replicas' }), snapshot(), trans).join(' ');
  expect(far).toContain('goes on with the replicas that it has on other nodes');
});

test('stopping a batch says what ends, what is not run, and what stays', () => {
  const view = snapshot({
    leases: { l1: lease('l1', { batch: 'b1' }), l2: lease('l2', { devices: ['g9'] }) },
    runs: {
      r1: run('r1', { name: 'fit', batch: 'b1' }),
      r2: run('r2', { name: 'other' })
    }
  });
  const text = stopBatchLosses(batch('b1'), view, trans).join(' ');
  expect(text).toContain('2 notebooks that are at work end');
  expect(text).toContain('The run fit ends');
  expect(text).not.toContain('other');
  expect(text).toContain('5 notebooks that wait are not run.');
  expect(text).toContain('GPU 0, GPU 1 may be given');
  expect(text).toContain('5 notebooks that have ended stay');
  const fresh = batch('b2', { user: 'bob', done: 0, failed: 0, running: 0, total: 1 });
  expect(stopBatchLosses(fresh, view, trans)).toEqual([
    'It belongs to bob.',
    '1 notebook that waits is not run.'
  ]);
});

test('a reservation that has begun is lost like its lease', () => {
  const row = reservation('b1', { lease: 'l1' });
  const view = snapshot({ reservations: { b1: row } });
  expect(unreserveLosses(row, view, trans).join(' ')).toContain('GPU 0, GPU 1');
  const coming = reservation('b2', { user: 'bob' });
  const text = unreserveLosses(coming, view, trans).join(' ');
  expect(text).toContain('It belongs to bob.');
  expect(text).toContain('promised to somebody else');
});

test('cancelling says how long it has waited and its place', () => {
  const text = cancelLosses(request('q1', { position: 3 }), snapshot(), 1065, trans).join(
    ' '
  );
  expect(text).toContain('1:05');
  expect(text).toContain('number 3');
});
