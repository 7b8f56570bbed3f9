import { IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import { ClusterModel } from './model';
import { IRun, isLive } from './schema';

/** Milliseconds after which is asked again: others change things too. */
const REFRESH = 60_000;

/**
 * What the server is asked for, as it does not tell of changes: while somebody looks, and again when a
 * run has ended, which is when models are published and datasets made, and when a model is served.
 */
export class Asked<T> implements IDisposable {
  constructor(
    name: string,
    private _ask: () => Promise<T>,
    private _cluster: ClusterModel
  ) {
    this._poll = new Poll({
      name: `aios-jupyter:${name}`,
      auto: false,
      factory: () => this._fetch(),
      frequency: { interval: REFRESH, backoff: true, max: 5 * REFRESH },
      standby: () => !this._watchers || document.hidden
    });
    _cluster.changed.connect(this._onCluster, this);
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** The last answer; null before the first. */
  get answer(): T | null {
    return this._answer;
  }

  /** Why there is no answer. */
  get trouble(): string {
    return this._trouble;
  }

  get isDisposed(): boolean {
    return this._poll.isDisposed;
  }

  /** Somebody looks, until the function that is returned is called. */
  watch(): () => void {
    if (this._watchers++ === 0) {
      void this._poll.start();
      if (this._answer === null || this._stale) {
        void this.refresh();
      }
    }
    return () => void this._watchers--;
  }

  /** Ask now. */
  async refresh(): Promise<void> {
    this._stale = false;
    await this._poll.refresh();
  }

  dispose(): void {
    this._cluster.changed.disconnect(this._onCluster, this);
    this._poll.dispose();
    Signal.clearData(this);
  }

  private async _fetch(): Promise<void> {
    if (!this._cluster.snapshot) {
      return;
    }
    try {
      this._answer = await this._ask();
      this._trouble = '';
    } catch (error) {
      this._trouble = error instanceof Error ? error.message : String(error);
      throw error;
    } finally {
      this._changed.emit();
    }
  }

  private _onCluster(): void {
    const runs = this._cluster.snapshot?.runs;
    if (runs === this._runs) {
      return;
    }
    this._runs = runs;
    const told = Object.values(runs ?? {}).filter(tells).length;
    const stale = told !== this._told;
    this._told = told;
    this._stale ||= stale;
    if (stale && this._watchers) {
      void this.refresh();
    }
  }

  private _poll: Poll;
  private _changed = new Signal<this, void>(this);
  private _answer: T | null = null;
  private _trouble = '';
  private _watchers = 0;
  private _stale = false;
  private _told = 0;
  private _runs: object | undefined;
}

/** Whether a run says by being there that there may be something new. */
function tells(run: IRun): boolean {
  return !isLive(run) || run.kind === 'endpoint';
}
