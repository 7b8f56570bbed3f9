import { notices } from '../src/notices';
import { lease, request, run, snapshot } from './rows';

const kinds = (...pair: [ReturnType<typeof snapshot>, ReturnType<typeof snapshot>]) =>
  notices(...pair).map(notice => notice.kind);

describe('notices', () => {
  it('tell a grant after a wait, and not one that came at once', () => {
    const waiting = snapshot({ leases: {}, queue: { q1: request('q1') } });
    const after = (granted: number) =>
      snapshot({ leases: { l1: lease('l1', { request: 'q1', granted }) }, queue: {} });
    expect(kinds(waiting, after(1060))).toEqual(['granted']);
    expect(kinds(waiting, after(1002))).toEqual([]);
  });

  it('tell once that a lease ends soon', () => {
    const fine = snapshot();
    const warned = snapshot({ leases: { l1: lease('l1', { warned: true }) } });
    expect(kinds(fine, warned)).toEqual(['ending']);
    expect(kinds(warned, { ...warned })).toEqual([]);
  });

  it('tell that a long run has finished and that any has failed', () => {
    const before = snapshot({ runs: { r1: run('r1'), r2: run('r2'), r3: run('r3') } });
    const after = snapshot({
      runs: {
        r1: run('r1', { state: 'succeeded', ended: 1100 }),
        r2: run('r2', { state: 'failed', ended: 1001 }),
        r3: run('r3', { state: 'stopped', ended: 1100 })
      }
    });
    expect(kinds(before, after)).toEqual(['finished', 'failed']);
    expect(kinds(after, { ...after })).toEqual([]);
  });

  it('leave out a short success, an endpoint, and what is somebody else’s', () => {
    const all = {
      r1: run('r1'),
      r2: run('r2', { kind: 'endpoint' }),
      r4: run('r4', { kind: 'replicas' }),
      r3: run('r3', { user: 'bob' })
    };
    const ended = {
      r1: { ...all.r1, state: 'succeeded' as const, ended: 1001 },
      r2: { ...all.r2, state: 'succeeded' as const, ended: 2000 },
      r4: { ...all.r4, state: 'succeeded' as const, ended: 2000 },
      r3: { ...all.r3, state: 'failed' as const, ended: 2000 }
    };
    expect(kinds(snapshot({ runs: all }), snapshot({ runs: ended }))).toEqual([]);
  });
});
