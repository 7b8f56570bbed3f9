import { ClusterModel, merge } from '../src/model';
import { IClusterEvent } from '../src/schema';
import { device, lease, snapshot } from './rows';

function event(seq: number, rest: Partial<IClusterEvent>): IClusterEvent {
  return { stream: 's', seq, time: Date.now() / 1000, ...rest };
}

function loaded(): ClusterModel {
  const model = new ClusterModel();
  model.apply(event(3, { snapshot: snapshot() }));
  return model;
}

describe('merge', () => {
  it('puts changed rows in, takes null rows away and adds new ones', () => {
    const before = snapshot();
    const after = merge(before, {
      devices: { g0: device('g0', { utilization: 50 }), g1: null, g9: device('g9') }
    });
    expect(Object.keys(after.devices).sort()).toEqual(['g0', 'g9']);
    expect(after.devices['g0']?.utilization).toBe(50);
  });

  it('keeps the identity of rows and sections that did not change', () => {
    const before = snapshot();
    const after = merge(before, { devices: { g0: device('g0', { utilization: 50 }) } });
    expect(after.devices['g1']).toBe(before.devices['g1']);
    expect(after.leases).toBe(before.leases);
    expect(after.devices).not.toBe(before.devices);
  });

  it('does not touch the snapshot it was given', () => {
    const before = snapshot();
    const copy = structuredClone(before);
    merge(before, { devices: { g0: null }, leases: { l2: lease('l2') } });
    expect(before).toEqual(copy);
  });
});

describe('ClusterModel', () => {
  it('takes a snapshot and the deltas that follow it', () => {
    const model = loaded();
    expect(model.apply(event(4, { delta: { leases: { l1: null } } }))).toBe(true);
    expect(model.snapshot?.leases).toEqual({});
    expect(model.position).toEqual({ stream: 's', seq: 4 });
  });

  it('refuses a delta after a gap and stays as it was', () => {
    const model = loaded();
    const before = model.snapshot;
    expect(model.apply(event(5, { delta: { leases: { l1: null } } }))).toBe(false);
    expect(model.snapshot).toBe(before);
  });

  it('refuses a delta of another life of the server', () => {
    const model = loaded();
    const other = { ...event(4, { delta: { leases: {} } }), stream: 't' };
    expect(model.apply(other)).toBe(false);
  });

  it('ignores what it has seen already', () => {
    const model = loaded();
    expect(model.apply(event(2, { delta: { leases: { l1: null } } }))).toBe(true);
    expect(model.snapshot?.leases['l1']).toBeDefined();
  });

  it('takes a snapshot whatever was before', () => {
    const model = loaded();
    const other = { ...event(1, { snapshot: snapshot({ leases: {} }) }), stream: 't' };
    expect(model.apply(other)).toBe(true);
    expect(model.snapshot?.leases).toEqual({});
  });

  it('knows no cluster from trouble with one', () => {
    const model = loaded();
    model.apply(event(4, { offline: 'No cluster is running.', kind: 'no-cluster' }));
    expect(model.snapshot).toBeNull();
    expect(model.trouble).toBe('');
    model.apply(event(5, { offline: 'The broker does not answer.', kind: 'cluster' }));
    expect(model.trouble).toBe('The broker does not answer.');
    model.apply(event(6, { snapshot: snapshot() }));
    expect(model.trouble).toBe('');
  });

  it('tells each change once', () => {
    const model = loaded();
    let changes = 0;
    model.changed.connect(() => changes++);
    model.apply(event(4, { delta: { leases: { l1: null } } }));
    model.apply(event(4, { delta: { leases: { l1: null } } }));
    model.apply(event(4, { unchanged: true }));
    model.link = 'live';
    model.link = 'live';
    expect(changes).toBe(2);
  });

  it('follows the clock of a server that is minutes off, and not the network', () => {
    const model = new ClusterModel();
    const now = Date.now() / 1000;
    model.apply({ stream: 's', seq: 1, time: now + 600, snapshot: snapshot() });
    expect(model.now() - now).toBeCloseTo(600, 0);
    model.apply({ stream: 's', seq: 2, time: now - 2, delta: {} });
    expect(model.now() - now).toBeCloseTo(0, 0);
  });
});
