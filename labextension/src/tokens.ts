import { Token } from '@lumino/coreutils';

import type { ClusterModel } from './model';

/** The ids of all commands. */
export namespace CommandIDs {
  export const open = 'aios:open';
  export const startCluster = 'aios:start-cluster';
  export const release = 'aios:release-lease';
  export const cancel = 'aios:cancel-request';
  export const reprioritize = 'aios:change-priority';
  export const unreserve = 'aios:cancel-reservation';
  export const stopRun = 'aios:stop-run';
  export const stopBatch = 'aios:stop-batch';
  export const openResults = 'aios:open-results';
  export const openLog = 'aios:open-log';
  export const tryEndpoint = 'aios:try-endpoint';
  export const promote = 'aios:promote-model';
  export const rollback = 'aios:roll-back-model';
  export const extend = 'aios:extend-lease';
  export const allocate = 'aios:allocate';
  export const runCell = 'aios:run-cell';
  export const jump = 'aios:jump-to-cell';
  export const openDetails = 'aios:open-details';
}

/** For other extensions: what the cluster looks like, as it changes. */
export const IClusterModel = new Token<ClusterModel>(
  'aios-jupyter:IClusterModel',
  'The AIOS cluster: devices, queue, leases and runs, kept up to date.'
);

export type IClusterModel = ClusterModel;
