/**
 * What the server sends: the rows of `aios_jupyter/broker/views.py`, field by field.
 *
 * Times are seconds since the epoch, memory bytes, utilization percent, power watts.
 */

export type Role = 'admin' | 'user' | 'viewer';
export type DeviceKind = 'gpu' | 'mig' | 'simulated' | 'cpu';
export type RunState =
  'starting' | 'running' | 'restarting' | 'stopping' | 'succeeded' | 'failed' | 'stopped';

export interface ICluster {
  name: string;
  version: string;
  started: number;
  broker_pid: number;
  user: string;
  role: Role;
  simulated: boolean;
}

export interface INode {
  id: string;
  host: string;
  address: string;
  /** `waiting` and `ended`: its machine is yet to come, as Slurm has it, or was taken back. */
  state: 'up' | 'lost' | 'waiting' | 'ended';
  /** How that is, in a sentence; '' where there is nothing to say. */
  note: string;
  /** When it is leased no more, as its machine is only lent (epoch seconds). */
  until: number | null;
  cpus: number;
  memory: number;
  /** Processes that are kept ready for the next runs. */
  warm: { frameworks: string[]; processes: number; memory: number };
}

export interface IHolder {
  lease: string;
  user: string;
  label: string;
  run: string;
}

/** A part of a device's memory. */
export interface IShare extends IHolder {
  memory: number;
}

export interface IProcess {
  pid: number;
  memory: number;
  name: string;
  user: string;
}

export interface IDevice {
  id: string;
  node: string;
  host: string;
  kind: DeviceKind;
  name: string;
  index: number;
  memory: number;
  utilization: number | null;
  memory_used: number | null;
  temperature: number | null;
  power: number | null;
  power_limit: number | null;
  /** Of several that share it, the first. */
  holder: IHolder | null;
  /** Who shares it; empty where one holds it whole. */
  shares?: IShare[];
  outside: IProcess[];
}

export interface IRequest {
  id: string;
  user: string;
  label: string;
  want: 'gpu' | 'device' | 'cpu';
  count: number;
  /** How many will do where `count` are not free. */
  least?: number;
  /** Whose quota it takes from. */
  queue?: string;
  priority?: number;
  /** The batch of notebooks that it is of; empty for none. */
  batch?: string;
  /** Its lease was taken for others, and it waits again. */
  preempted?: boolean;
  submitted: number;
  /** The process that waits for it: its machine and pid. */
  host?: string;
  pid?: number;
  position: number;
  reason: string;
  /** The reason in a sentence. */
  why?: string;
  /** When it will probably start, epoch seconds; null when nobody knows. */
  eta?: number | null;
}

export interface ILease {
  id: string;
  user: string;
  label: string;
  devices: string[];
  granted: number;
  expires: number | null;
  state: 'active' | 'ending';
  /** The request that it was granted to. */
  request?: string;
  /** Whose quota its devices are of. */
  queue?: string;
  /** The process that holds it, a kernel or a shell: its machine and pid. */
  host?: string;
  pid?: number;
  /** Others may take its devices; `preempted`: they do, for `reason`. */
  preemptible?: boolean;
  preempted?: boolean;
  reason?: string;
  used: boolean;
  /** The batch of notebooks that it is of; empty for none. */
  batch?: string;
  scope: 'session' | 'cell' | 'detached' | 'reserved';
  /** Its session has been told that it ends soon. */
  warned?: boolean;
  /** Since when nothing has been computed on it, once that is too long; it ends at `idle_ends`. */
  idle_since?: number | null;
  idle_ends?: number | null;
}

/** Devices for a time to come; `lease` is empty until it has begun. */
export interface IReservation {
  id: string;
  user: string;
  label: string;
  want: 'gpu' | 'device' | 'cpu';
  count: number;
  start: number;
  end: number;
  devices: string[];
  lease: string;
}

export interface IProgress {
  done: number;
  total: number;
  unit: string;
  label: string;
}

export interface IRun {
  id: string;
  lease: string;
  user: string;
  kind: 'train' | 'run' | 'endpoint' | 'replicas';
  name: string;
  label: string;
  framework: string;
  world_size: number;
  state: RunState;
  started: number;
  ended: number | null;
  progress: IProgress;
  metrics: Record<string, number>;
  reason: string;
  detail: Record<string, unknown>;
  /** The batch of notebooks that it is of; empty for none. */
  batch?: string;
}

/** One notebook for many parameters; what is neither done nor running waits. */
export interface IBatch {
  id: string;
  user: string;
  label: string;
  /** Where its results are, on the machine that runs it; empty for what is somebody else's. */
  directory?: string;
  state: 'running' | 'stopping' | 'ended' | 'stopped' | 'interrupted';
  total: number;
  /** How many have ended, those that `failed` included. */
  done: number;
  failed: number;
  running: number;
  started: number;
  ended: number | null;
}

/** The sections whose rows are merged by id. */
export interface ISections {
  nodes: Record<string, INode>;
  devices: Record<string, IDevice>;
  queue: Record<string, IRequest>;
  leases: Record<string, ILease>;
  reservations: Record<string, IReservation>;
  runs: Record<string, IRun>;
  batches: Record<string, IBatch>;
}

export interface ISnapshot extends ISections {
  cluster: ICluster;
}

/** Changed rows by id; null takes a row away. */
export type Delta = { cluster?: ICluster } & {
  [Section in keyof ISections]?: Record<string, ISections[Section][string] | null>;
};

/** An event of the stream, and the answer of `GET aios/snapshot`. */
export interface IClusterEvent {
  stream: string;
  seq: number;
  time: number;
  snapshot?: ISnapshot;
  delta?: Delta;
  offline?: string;
  /** With `offline`: what kind of error says so; `no-cluster` is the ordinary one. */
  kind?: string;
  unchanged?: boolean;
}

/** The event schema under which the server emits an `IClusterEvent`. */
export const EVENT_SCHEMA = 'https://events.aios-jupyter.org/cluster/v1';

const LIVE: ReadonlySet<RunState> = new Set([
  'starting',
  'running',
  'restarting',
  'stopping'
]);

/** Whether a run answers for a model until it is stopped, as an endpoint or for one. */
export function isServing(run: IRun): boolean {
  return run.kind === 'endpoint' || run.kind === 'replicas';
}

/** Whether a run has not ended. */
export function isLive(run: IRun): boolean {
  return LIVE.has(run.state);
}
