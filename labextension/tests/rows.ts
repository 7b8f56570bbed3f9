import { TranslationBundle } from '@jupyterlab/translation';

import {
  IBatch,
  IDevice,
  ILease,
  IRequest,
  IReservation,
  IRun,
  ISnapshot
} from '../src/schema';

/** Rows for the tests: plain defaults, and what the test cares about. */

export function device(id: string, rest: Partial<IDevice> = {}): IDevice {
  return {
    id,
    node: 'n1',
    host: 'n1',
    kind: 'gpu',
    name: 'GPU',
    index: Number(id.replace(/\D/g, '')),
    memory: 16 * 1024 ** 3,
    utilization: 0,
    memory_used: 0,
    temperature: null,
    power: null,
    power_limit: null,
    holder: null,
    outside: [],
    ...rest
  };
}

export function lease(id: string, rest: Partial<ILease> = {}): ILease {
  return {
    id,
    user: 'ada',
    label: 'train.ipynb',
    devices: ['g0', 'g1'],
    granted: 1000,
    expires: null,
    state: 'active',
    used: true,
    scope: 'session',
    ...rest
  };
}

export function request(id: string, rest: Partial<IRequest> = {}): IRequest {
  return {
    id,
    user: 'ada',
    label: 'sweep.ipynb',
    want: 'gpu',
    count: 2,
    submitted: 1000,
    position: 1,
    reason: '',
    ...rest
  };
}

export function reservation(id: string, rest: Partial<IReservation> = {}): IReservation {
  return {
    id,
    user: 'ada',
    label: 'night.ipynb',
    want: 'gpu',
    count: 2,
    start: 2000,
    end: 3000,
    devices: ['g0', 'g1'],
    lease: '',
    ...rest
  };
}

export function run(id: string, rest: Partial<IRun> = {}): IRun {
  return {
    id,
    lease: 'l1',
    user: 'ada',
    kind: 'train',
    name: `name of ${id}`,
    label: 'train.ipynb',
    framework: 'torch',
    world_size: 2,
    state: 'running',
    started: 1000,
    ended: null,
    progress: { done: 0, total: 0, unit: '', label: '' },
    metrics: {},
    reason: '',
    detail: {},
    ...rest
  };
}

export function batch(id: string, rest: Partial<IBatch> = {}): IBatch {
  return {
    id,
    user: 'ada',
    label: 'sweep.ipynb',
    state: 'running',
    total: 12,
    done: 5,
    failed: 1,
    running: 2,
    started: 1000,
    ended: null,
    ...rest
  };
}

export function snapshot(rest: Partial<ISnapshot> = {}): ISnapshot {
  return {
    cluster: {
      name: 'default',
      version: '0',
      started: 0,
      broker_pid: 1,
      user: 'ada',
      role: 'user',
      simulated: false
    },
    nodes: {
      n1: {
        id: 'n1',
        host: 'n1',
        address: '',
        state: 'up',
        note: '',
        until: null,
        cpus: 8,
        memory: 0,
        warm: { frameworks: [], processes: 0, memory: 0 }
      }
    },
    devices: { g0: device('g0'), g1: device('g1') },
    queue: {},
    leases: { l1: lease('l1') },
    reservations: {},
    runs: {},
    batches: {},
    ...rest
  };
}

/** Words as they are in the source. */
export const trans = {
  __: (text: string, ...args: unknown[]) => fill(text, args),
  _n: (one: string, many: string, n: number, ...args: unknown[]) =>
    fill(n === 1 ? one : many, [n, ...args])
} as unknown as TranslationBundle;

function fill(text: string, args: unknown[]): string {
  return text.replace(/%(\d)/g, (_, index: string) => String(args[Number(index) - 1]));
}
