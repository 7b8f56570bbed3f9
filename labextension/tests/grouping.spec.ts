import { foldOf, grouped, lines } from '../src/grouping';
import { device, run, snapshot } from './rows';

const NO_WARM = { processes: 0, memory: 0, frameworks: [] };
const HOLDER = { lease: 'l1', user: 'ada', label: 'train.ipynb', run: 'r1' };

function cluster() {
  return snapshot({
    nodes: {
      b: {
        id: 'b',
        host: 'bohr',
        address: '',
        state: 'up',
        note: '',
        until: null,
        cpus: 8,
        memory: 0,
        warm: NO_WARM
      },
      a: {
        id: 'a',
        host: 'ada-01',
        address: '',
        state: 'up',
        note: '',
        until: null,
        cpus: 8,
        memory: 0,
        warm: NO_WARM
      },
      e: {
        id: 'e',
        host: 'empty',
        address: '',
        state: 'up',
        note: '',
        until: null,
        cpus: 8,
        memory: 0,
        warm: NO_WARM
      }
    },
    devices: {
      g3: device('g3', { node: 'b', host: 'bohr', name: 'NVIDIA H100' }),
      c0: device('c0', { node: 'a', host: 'ada-01', kind: 'cpu' }),
      g1: device('g1', { node: 'a', host: 'ada-01', holder: HOLDER }),
      g0: device('g0', { node: 'a', host: 'ada-01' })
    },
    runs: { r1: run('r1', { name: 'digits' }) }
  });
}

const ids = (filter: string, by: 'node' | 'user' = 'node') =>
  grouped(cluster(), by, filter).flatMap(group => group.devices.map(one => one.id));

describe('grouped', () => {
  it('has nodes by host with accelerators first, and nodes without devices', () => {
    const groups = grouped(cluster(), 'node', '');
    expect(groups.map(group => group.name)).toEqual(['ada-01', 'bohr', 'empty']);
    expect(groups[0]?.devices.map(one => one.id)).toEqual(['g0', 'g1', 'c0']);
    expect(groups[0]?.free).toBe(2);
  });

  it('groups by who holds, by model and by state', () => {
    const names = (by: 'user' | 'model' | 'state') =>
      grouped(cluster(), by, '').map(group => group.name);
    expect(names('user')).toEqual(['', 'ada']);
    expect(names('model')).toEqual(['GPU', 'NVIDIA H100']);
    expect(names('state')).toEqual(['free', 'mine']);
  });

  it('finds devices by all words: host, model, user, notebook, run and state', () => {
    expect(ids('h100')).toEqual(['g3']);
    expect(ids('ADA-01 free')).toEqual(['g0', 'c0']);
    expect(ids('digits')).toEqual(['g1']);
    expect(ids('train.ipynb')).toEqual(['g1']);
    expect(ids('gpu 3')).toEqual(['g3']);
    expect(ids('nothing of the sort')).toEqual([]);
  });
});

describe('lines', () => {
  it('has a head for each group, and no devices of a folded one', () => {
    const groups = grouped(cluster(), 'node', '');
    const [first] = groups;
    const folded = new Set([first ? foldOf(first) : '']);
    expect(lines(groups, folded).map(line => line.kind)).toEqual([
      'head',
      'head',
      'device',
      'head'
    ]);
  });
});
