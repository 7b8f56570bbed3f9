import { TranslationBundle } from '@jupyterlab/translation';

import { count, duration } from './format';
import { batchNow, deviceName, runsOn } from './overview';
import { IModel } from './registry';
import { IBatch, ILease, IRequest, IReservation, IRun, ISnapshot } from './schema';

/** What ending something takes away, in sentences: the body of the dialog that asks. */
export type Losses = string[];

/** What is lost when a lease is released. */
export function releaseLosses(
  lease: ILease,
  snapshot: ISnapshot,
  trans: TranslationBundle
): Losses {
  const names = lease.devices.map(id => deviceName(snapshot.devices[id], id)).join(', ');
  const runs = runsOn(lease, snapshot);
  return [
    owner(lease.user, snapshot, trans),
    ...runs.map(run => runLoss(run, trans)),
    runs.length > 0
      ? trans.__('Whatever these ranks have not saved is lost.')
      : trans.__('Nothing is running on it.'),
    trans.__(
      '%1 may be given to somebody else at once. The notebook and its variables stay.',
      names
    )
  ].filter(Boolean);
}

/** What is lost when a run is stopped. */
export function stopLosses(
  run: IRun,
  snapshot: ISnapshot,
  trans: TranslationBundle
): Losses {
  const after =
    run.kind === 'endpoint'
      ? trans.__('Its address stops answering; the model stays in the registry.')
      : run.kind === 'replicas'
        ? trans.__('The endpoint goes on with the replicas that it has on other nodes.')
        : trans.__('What its ranks have not saved is lost.');
  const lease = snapshot.leases[run.lease];
  const kept =
    lease?.scope === 'session' ? [trans.__('The lease on its devices stays.')] : [];
  return [owner(run.user, snapshot, trans), runLoss(run, trans), after, ...kept].filter(
    Boolean
  );
}

/** What is lost when a batch of notebooks is stopped. */
export function stopBatchLosses(
  batch: IBatch,
  snapshot: ISnapshot,
  trans: TranslationBundle
): Losses {
  const { devices, runs, waiting } = batchNow(batch, snapshot);
  const names = devices.map(id => deviceName(snapshot.devices[id], id)).join(', ');
  return [
    owner(batch.user, snapshot, trans),
    batch.running > 0 &&
      trans._n(
        '%1 notebook that is at work ends; what it has done is lost.',
        '%1 notebooks that are at work end; what they have done is lost.',
        batch.running
      ),
    ...runs.map(run => runLoss(run, trans)),
    waiting > 0 &&
      trans._n(
        '%1 notebook that waits is not run.',
        '%1 notebooks that wait are not run.',
        waiting
      ),
    names && trans.__('%1 may be given to somebody else at once.', names),
    batch.done > 0 &&
      trans._n(
        '%1 notebook that has ended stays, with the table; the same batch started again goes on from there.',
        '%1 notebooks that have ended stay, with the table; the same batch started again goes on from there.',
        batch.done
      )
  ].filter((line): line is string => !!line);
}

/** What is lost when a reservation is cancelled. */
export function unreserveLosses(
  reservation: IReservation,
  snapshot: ISnapshot,
  trans: TranslationBundle
): Losses {
  const lease = snapshot.leases[reservation.lease];
  if (lease) {
    return releaseLosses(lease, snapshot, trans);
  }
  return [
    owner(reservation.user, snapshot, trans),
    trans.__('Its devices may be promised to somebody else at once.')
  ].filter(Boolean);
}

/** What is lost when a request is cancelled. */
export function cancelLosses(
  request: IRequest,
  snapshot: ISnapshot,
  now: number,
  trans: TranslationBundle
): Losses {
  return [
    owner(request.user, snapshot, trans),
    trans.__(
      'It has waited for %1 and is number %2; a new request starts at the end of the queue.',
      duration(now - request.submitted),
      request.position
    ),
    trans.__('What waits for it, such as a notebook cell, ends with an error.')
  ].filter(Boolean);
}

/** What changes when an alias goes back to the version before. */
export function rollbackLosses(
  model: IModel,
  alias: string,
  trans: TranslationBundle
): Losses {
  const now = model.aliases[alias] ?? 0;
  return [
    trans.__(
      '%1 no longer stands for version %2, which stays in the registry.',
      alias,
      now
    ),
    trans.__('Endpoints that serve the alias change their version with it.')
  ];
}

function owner(user: string, snapshot: ISnapshot, trans: TranslationBundle): string {
  return user === snapshot.cluster.user ? '' : trans.__('It belongs to %1.', user);
}

function runLoss(run: IRun, trans: TranslationBundle): string {
  const ranks = trans._n('%1 rank', '%1 ranks', run.world_size);
  const { done, total, unit } = run.progress;
  if (run.kind === 'endpoint') {
    return trans.__('The endpoint %1 ends (%2).', run.name, ranks);
  }
  if (total > 0) {
    return trans.__(
      'The run %1 ends (%2, %3 of %4 done).',
      run.name,
      ranks,
      count(done),
      `${count(total)} ${unit}`.trim()
    );
  }
  return trans.__('The run %1 ends (%2).', run.name, ranks);
}
