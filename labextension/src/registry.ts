import { Poll } from '@lumino/polling';
import { IDisposable } from '@lumino/disposable';
import { ISignal, Signal } from '@lumino/signaling';

import { IApi } from './api';
import { ClusterModel } from './model';
import { isLive } from './schema';

/** One published version: a row of `GET aios/models`. */
export interface IVersion {
  ref: string;
  name: string;
  version: number;
  aliases: string[];
  /** Alias of this version → the version that it named before. */
  before?: Record<string, number>;
  metrics: Record<string, number>;
  params: Record<string, string>;
  created: number;
  framework: string;
  lineage: Record<string, string>;
  signature: { inputs?: ITensor[]; outputs?: ITensor[] };
}

export interface ITensor {
  name: string;
  datatype: string;
  shape: number[];
}

/** A model with its versions, the newest first. */
export interface IModel {
  name: string;
  versions: IVersion[];
  /** Alias → version. */
  aliases: Record<string, number>;
}

/** Milliseconds after which the registry is asked again: others publish too. */
const REFRESH = 60_000;

/**
 * The models of the registry, which does not tell of changes: asked for while somebody looks, and
 * again when a run has ended, which is when models are published.
 */
export class Registry implements IDisposable {
  constructor(
    private _api: IApi,
    private _cluster: ClusterModel
  ) {
    this._poll = new Poll({
      name: 'aios-jupyter:models',
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

  /** The models by name; null before the first answer. */
  get models(): IModel[] | null {
    return this._models;
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
      if (this._models === null || this._stale) {
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
      const { models } = await this._api.models();
      this._models = byName(models);
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
    const ended = Object.values(runs ?? {}).filter(run => !isLive(run)).length;
    const stale = ended !== this._ended;
    this._ended = ended;
    this._stale ||= stale;
    if (stale && this._watchers) {
      void this.refresh();
    }
  }

  private _poll: Poll;
  private _changed = new Signal<this, void>(this);
  private _models: IModel[] | null = null;
  private _trouble = '';
  private _watchers = 0;
  private _stale = false;
  private _ended = 0;
  private _runs: object | undefined;
}

/** Versions as models, in the order of their names. */
export function byName(versions: readonly IVersion[]): IModel[] {
  const models = new Map<string, IModel>();
  for (const version of versions) {
    const model = models.get(version.name) ?? {
      name: version.name,
      versions: [],
      aliases: {}
    };
    model.versions.push(version);
    version.aliases.forEach(alias => (model.aliases[alias] = version.version));
    models.set(version.name, model);
  }
  for (const model of models.values()) {
    model.versions.sort((a, b) => b.version - a.version);
  }
  return [...models.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** The version to which an alias goes back: what it named before; null when it named no other. */
export function versionBefore(model: IModel, alias: string): number | null {
  const now = model.aliases[alias];
  return model.versions.find(({ version }) => version === now)?.before?.[alias] ?? null;
}
