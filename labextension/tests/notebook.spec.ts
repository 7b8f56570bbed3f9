import { allocLine, cellOf, loadsMagics, onRanks } from '../src/notebook/cells';
import { holdings, Kernels } from '../src/notebook/kernels';
import { lease, request, snapshot } from './rows';

describe('onRanks', () => {
  it('adds the magic once, and leaves other cell magics alone', () => {
    expect(onRanks('x = 1')).toBe('%%aios train\nx = 1');
    expect(onRanks('%%aios train\nx = 1')).toBeNull();
    expect(onRanks('%%time\nx = 1')).toBeNull();
    expect(onRanks('%matplotlib inline')).toBe('%%aios train\n%matplotlib inline');
  });
});

describe('allocLine', () => {
  it('takes a number or a range, and a time or none', () => {
    expect(allocLine({ devices: ' 2 ', time: '1h' })).toBe(
      '%aios alloc --devices 2 --time 1h'
    );
    expect(allocLine({ devices: '2:4', time: '' })).toBe('%aios alloc --devices 2:4');
  });

  it.each([
    ['0', '1h'],
    ['2; import os', '1h'],
    ['2', '1h\n!rm'],
    ['2', 'for ever'],
    ['', '1h']
  ])('refuses %j for %j', (devices, time) => {
    expect(allocLine({ devices, time })).toBeNull();
  });
});

describe('loadsMagics', () => {
  it('goes by the kernel or by a cell', () => {
    expect(loadsMagics('aios', [])).toBe(true);
    expect(loadsMagics('python3', ['import x', '%load_ext aios_jupyter'])).toBe(true);
    expect(loadsMagics('python3', ['# %load_ext aios_jupyter_other'])).toBe(false);
  });
});

describe('cellOf', () => {
  const cell = (source: string, count: number | null = null, running = false) => ({
    source,
    count,
    running
  });

  it('is the cell with that number', () => {
    const cells = [cell('%%aios train\n', 3), cell('%%aios train\n', 7)];
    expect(cellOf('cell 3', cells)).toBe(0);
  });

  it('is the one that runs, else the last that has the magic', () => {
    const running = [cell('%%aios train\n', null, true), cell('%%aios train\n', 7)];
    expect(cellOf('cell 9', running)).toBe(0);
    expect(cellOf('my name', [cell('%%aios train\n', 1), cell('%%aios run\n', 2)])).toBe(
      1
    );
  });

  it('is none where nothing tells', () => {
    expect(cellOf('cell 9', [cell('x = 1', 1)])).toBe(-1);
  });
});

describe('holdings', () => {
  it('has the leases and requests of exactly that process', () => {
    const own = { host: 'n1', pid: 42 };
    const cluster = snapshot({
      leases: {
        l1: lease('l1', own),
        l2: lease('l2', { host: 'n2', pid: 42 }),
        l3: lease('l3', { ...own, granted: 2000 })
      },
      queue: { q1: request('q1', own), q2: request('q2', { host: 'n1', pid: 43 }) }
    });
    const held = holdings(own, cluster);
    expect(held.leases.map(one => one.id)).toEqual(['l3', 'l1']);
    expect(held.requests.map(one => one.id)).toEqual(['q1']);
  });
});

describe('Kernels', () => {
  it('knows what the server said last, and tells that it does', async () => {
    const kernels = new Kernels({
      kernels: () => Promise.resolve({ k1: { host: 'n1', pid: 7 } })
    });
    let told = 0;
    kernels.changed.connect(() => told++);
    expect(kernels.process('k1')).toBeNull();
    await kernels.refresh();
    expect(kernels.process('k1')).toEqual({ host: 'n1', pid: 7 });
    expect(told).toBe(1);
  });
});
