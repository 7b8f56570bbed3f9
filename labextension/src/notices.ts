import { ILease, IRun, ISnapshot, isLive, isServing } from './schema';

/** Something of the user's own that is worth telling wherever they are. */
export type Notice =
  | { kind: 'granted'; lease: ILease }
  | { kind: 'ending'; lease: ILease }
  | { kind: 'finished' | 'failed'; run: IRun };

/** Shorter waits and runs (seconds) are not news: whoever made them still looks. */
const SHORT = 10;

/** What is news between two states of the same cluster. */
export function notices(before: ISnapshot, after: ISnapshot): Notice[] {
  const user = after.cluster.user;
  const found: Notice[] = [];
  if (before.leases !== after.leases) {
    for (const lease of Object.values(after.leases)) {
      const old = before.leases[lease.id];
      if (lease.user !== user) {
        continue;
      }
      const waited = before.queue[lease.request ?? ''];
      if (!old && waited && lease.granted - waited.submitted > SHORT) {
        found.push({ kind: 'granted', lease });
      }
      if (old && lease.warned && !old.warned) {
        found.push({ kind: 'ending', lease });
      }
    }
  }
  if (before.runs !== after.runs) {
    for (const run of Object.values(after.runs)) {
      const old = before.runs[run.id];
      if (run.user !== user || !old || !isLive(old) || isLive(run)) {
        continue;
      }
      const long = (run.ended ?? 0) - run.started > SHORT;
      if (run.state === 'failed') {
        found.push({ kind: 'failed', run });
      } else if (run.state === 'succeeded' && long && !isServing(run)) {
        found.push({ kind: 'finished', run });
      }
    }
  }
  return found;
}
