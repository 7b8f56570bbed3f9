import { ISignal, Signal } from '@lumino/signaling';

import { IApi, IKernelProcess } from '../api';
import { ILease, IRequest, ISnapshot } from '../schema';

/** What a kernel has of the cluster: leases, the newest first, and what it waits for. */
export interface IHoldings {
  leases: ILease[];
  requests: IRequest[];
}

/** The leases and requests of one process. */
export function holdings(process: IKernelProcess, snapshot: ISnapshot): IHoldings {
  const own = (row: { host?: string; pid?: number }) =>
    row.pid === process.pid && row.host === process.host;
  return {
    leases: Object.values(snapshot.leases)
      .filter(own)
      .sort((a, b) => b.granted - a.granted),
    requests: Object.values(snapshot.queue)
      .filter(own)
      .sort((a, b) => a.position - b.position)
  };
}

/** The processes of the server's kernels, asked for when an unknown one comes up. */
export class Kernels {
  constructor(private _api: Pick<IApi, 'kernels'>) {}

  /** More is known. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** A kernel's process; null while it is not known, or where it is on no machine of ours. */
  process(kernel: string): IKernelProcess | null {
    return this._known[kernel] ?? null;
  }

  /** Ask again: a kernel has been started, or restarted in another process. */
  async refresh(): Promise<void> {
    this._known = await this._api.kernels();
    this._changed.emit();
  }

  private _changed = new Signal<this, void>(this);
  private _known: Record<string, IKernelProcess> = {};
}
