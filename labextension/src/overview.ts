import { IBatch, IDevice, ILease, IRun, ISnapshot, isLive } from './schema';

/** What the whole cluster comes to: its accelerators, or its CPU slots where it has none. */
export interface ITotals {
  kind: 'gpu' | 'cpu';
  devices: number;
  free: number;
  waiting: number;
}

export interface ISortedRuns {
  runs: IRun[];
  endpoints: IRun[];
}

/** How a device is: what decides its color. */
export type DeviceState = 'free' | 'mine' | 'held' | 'outside' | 'lost';

/** Works an answer out once for each object: those of the model are replaced, never changed. */
function once<Of extends object, Answer>(work: (of: Of) => Answer): (of: Of) => Answer {
  const known = new WeakMap<Of, Answer>();
  return of => {
    let answer = known.get(of);
    if (answer === undefined) {
      answer = work(of);
      known.set(of, answer);
    }
    return answer;
  };
}

const ALL_STATES: readonly DeviceState[] = ['mine', 'held', 'outside', 'lost', 'free'];

/** Whether a device can be leased, and if not why. */
export function deviceState(device: IDevice, snapshot: ISnapshot): DeviceState {
  if (snapshot.nodes[device.node]?.state !== 'up') {
    return 'lost';
  }
  if (device.holder) {
    const holders = device.shares?.length ? device.shares : [device.holder];
    return holders.some(one => one.user === snapshot.cluster.user) ? 'mine' : 'held';
  }
  return device.outside.length > 0 ? 'outside' : 'free';
}

/** The devices that people count: accelerators, or CPU slots where there are none. */
export function mainDevices(snapshot: ISnapshot): IDevice[] {
  const all = Object.values(snapshot.devices);
  const accelerators = all.filter(device => device.kind !== 'cpu');
  return accelerators.length > 0 ? accelerators : all;
}

/** Devices, free devices and waiting requests. */
export const totals = once((snapshot: ISnapshot): ITotals => {
  const devices = mainDevices(snapshot);
  return {
    kind: devices.some(device => device.kind !== 'cpu') ? 'gpu' : 'cpu',
    devices: devices.length,
    free: devices.filter(device => deviceState(device, snapshot) === 'free').length,
    waiting: Object.keys(snapshot.queue).length
  };
});

/** The best place in the queue that this user has; null when they wait for nothing. */
export function firstPlace(snapshot: ISnapshot): number | null {
  const places = Object.values(snapshot.queue)
    .filter(request => request.user === snapshot.cluster.user)
    .map(request => request.position);
  return places.length > 0 ? Math.min(...places) : null;
}

/** The states of the devices that people count, and how many are in each. */
export function counted(snapshot: ISnapshot): {
  states: DeviceState[];
  parts: [DeviceState, number][];
  free: number;
} {
  const devices = mainDevices(snapshot).sort(
    (a, b) => (a.host < b.host ? -1 : Number(a.host > b.host)) || a.index - b.index
  );
  const states = devices.map(device => deviceState(device, snapshot));
  const counts = new Map<DeviceState, number>(ALL_STATES.map(state => [state, 0]));
  for (const state of states) {
    counts.set(state, (counts.get(state) ?? 0) + 1);
  }
  return {
    states,
    parts: [...counts].filter(([, count]) => count > 0),
    free: counts.get('free') ?? 0
  };
}

/** Mean utilization (percent), memory (bytes) and power (watts) of what is measured. */
export function load(snapshot: ISnapshot): {
  utilization: number | null;
  used: number;
  memory: number;
  power: number;
} {
  let [busy, measured, used, memory, power] = [0, 0, 0, 0, 0];
  for (const device of mainDevices(snapshot)) {
    if (device.utilization !== null) {
      busy += device.utilization;
      measured++;
    }
    if (device.memory_used !== null) {
      used += device.memory_used;
      memory += device.memory;
    }
    power += device.power ?? 0;
  }
  return { utilization: measured > 0 ? busy / measured : null, used, memory, power };
}

/** "GPU 0", "MIG 3", "CPU 1": short, for where a device is named and not described. */
export function deviceName(device: IDevice | undefined, id: string): string {
  if (!device) {
    return id;
  }
  const kind = { gpu: 'GPU', mig: 'MIG', simulated: 'GPU', cpu: 'CPU' }[device.kind];
  return `${kind} ${device.index}`;
}

/** Live runs first, the newest on top; endpoints are apart. */
export const sortedRuns = once((runs: Record<string, IRun>): ISortedRuns => {
  const newest = Object.values(runs).sort(
    (a, b) => Number(isLive(b)) - Number(isLive(a)) || b.started - a.started
  );
  return {
    runs: newest.filter(run => run.kind !== 'endpoint'),
    // An endpoint that was stopped is of no use; one that failed says why.
    endpoints: newest.filter(
      run => run.kind === 'endpoint' && (isLive(run) || run.state === 'failed')
    )
  };
});

/** The live endpoints of a user that serve a model. */
export function endpointsOf(
  runs: Record<string, IRun>,
  model: string,
  user: string
): IRun[] {
  return sortedRuns(runs).endpoints.filter(
    run => isLive(run) && run.user === user && run.detail['model'] === model
  );
}

/** A line of the list of runs: a batch, open or not, a run of the batch above it, or another run. */
export type RunLine =
  | { kind: 'batch'; key: string; batch: IBatch; open: boolean }
  | { kind: 'run'; key: string; run: IRun; inBatch: boolean };

/**
 * Runs and batches as one list: what lives first, the newest on top; of what has ended only so many.
 *
 * @returns The lines, and how many runs and batches that have ended are left out.
 */
export function runLines(
  runs: readonly IRun[],
  batches: Record<string, IBatch>,
  opened: ReadonlySet<string>,
  ended: number
): { lines: RunLine[]; left: number } {
  const members = new Map<string, IRun[]>();
  const entries: { live: boolean; started: number; batch?: IBatch; run?: IRun }[] = [];
  for (const run of runs) {
    if (run.batch && run.batch in batches) {
      members.set(run.batch, [...(members.get(run.batch) ?? []), run]);
    } else {
      entries.push({ live: isLive(run), started: run.started, run });
    }
  }
  for (const batch of Object.values(batches)) {
    entries.push({ live: isGoing(batch), started: batch.started, batch });
  }
  entries.sort((a, b) => Number(b.live) - Number(a.live) || b.started - a.started);
  const shown = entries.filter(({ live }) => live).length + ended;
  const lines = entries.slice(0, shown).flatMap(({ batch, run }): RunLine[] => {
    if (run) {
      return [{ kind: 'run', key: run.id, run, inBatch: false }];
    }
    if (!batch) {
      return [];
    }
    const open = opened.has(openOf(batch));
    const inside = open ? (members.get(batch.id) ?? []) : [];
    return [
      { kind: 'batch', key: batch.id, batch, open },
      ...inside.map(one => ({
        kind: 'run' as const,
        key: one.id,
        run: one,
        inBatch: true
      }))
    ];
  });
  return { lines, left: Math.max(0, entries.length - shown) };
}

/** Under which name it is kept that a batch is open. */
export function openOf(batch: IBatch): string {
  return `open:${batch.id}`;
}

/** Whether a batch is not over. */
export function isGoing(batch: IBatch): boolean {
  return batch.ended === null;
}

/** What a batch holds and does now, and how many of its notebooks wait. */
export function batchNow(
  batch: IBatch,
  snapshot: ISnapshot
): { devices: string[]; runs: IRun[]; waiting: number } {
  const leases = Object.values(snapshot.leases).filter(one => one.batch === batch.id);
  return {
    devices: leases.flatMap(lease => lease.devices),
    runs: Object.values(snapshot.runs).filter(
      run => run.batch === batch.id && isLive(run)
    ),
    waiting: Math.max(0, batch.total - batch.done - batch.running)
  };
}

/** Runs that end when this lease is released. */
export function runsOn(lease: ILease, snapshot: ISnapshot): IRun[] {
  return Object.values(snapshot.runs).filter(
    run => run.lease === lease.id && isLive(run)
  );
}

/** Whether this user may end what `owner` has: the broker decides, this only hides the button. */
export function mayEnd(snapshot: ISnapshot, owner: string): boolean {
  const { role, user } = snapshot.cluster;
  return role === 'admin' || (role === 'user' && user === owner);
}
