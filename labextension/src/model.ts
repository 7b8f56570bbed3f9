import { ISignal, Signal } from '@lumino/signaling';

import { History } from './history';
import { Delta, IClusterEvent, ISections, ISnapshot } from './schema';

/** How the front end hears of changes. `lost`: the server extension does not answer. */
export type Link = 'connecting' | 'live' | 'polling' | 'lost';

const SECTIONS: readonly (keyof ISections)[] = [
  'nodes',
  'devices',
  'queue',
  'leases',
  'reservations',
  'runs',
  'batches'
];

/**
 * The only state of the front end: one snapshot, kept up to date by numbered events.
 *
 * Rows and sections that an event does not name keep their identity, so that a component that
 * compares by reference draws only what changed.
 */
export class ClusterModel {
  /** What was before now, as far as it has been seen. */
  readonly history = new History();

  /** Emitted after each change of anything below. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** The cluster, or null when there is none in view. */
  get snapshot(): ISnapshot | null {
    return this._snapshot;
  }

  /** Why the cluster cannot be reached; empty when there is one, or simply none. */
  get trouble(): string {
    return this._trouble;
  }

  get link(): Link {
    return this._link;
  }

  set link(link: Link) {
    if (link !== this._link) {
      this._link = link;
      this._changed.emit();
    }
  }

  /** Where we are: the server's stream, and the number of the last event taken in. */
  get position(): { stream: string; seq: number } {
    return { stream: this._stream, seq: this._seq };
  }

  /** The server's clock, in seconds since the epoch. */
  now(): number {
    return Date.now() / 1000 + this._skew;
  }

  /**
   * Take an event in.
   *
   * @returns false when events before it were missed: the state must be asked for again.
   */
  apply(event: IClusterEvent): boolean {
    const known = event.stream === this._stream;
    if (known && event.seq <= this._seq) {
      return true;
    }
    if (event.unchanged) {
      return known;
    }
    const before = known ? this._snapshot : null;
    if (event.delta) {
      if (!known || event.seq !== this._seq + 1 || !this._snapshot) {
        return false;
      }
      this._snapshot = merge(this._snapshot, event.delta);
    } else {
      this._snapshot = event.snapshot ?? null;
      const expected = event.offline === undefined || event.kind === 'no-cluster';
      this._trouble = expected ? '' : (event.offline ?? '');
    }
    this.history.take(event, before);
    this._stream = event.stream;
    this._seq = event.seq;
    // Half a minute of difference is a wrong clock; less may be the network's delay.
    const skew = event.time - Date.now() / 1000;
    this._skew = Math.abs(skew) > 30 ? skew : 0;
    this._changed.emit();
    return true;
  }

  private _changed = new Signal<this, void>(this);
  private _snapshot: ISnapshot | null = null;
  private _trouble = '';
  private _link: Link = 'connecting';
  private _stream = '';
  private _seq = -1;
  private _skew = 0;
}

/** The snapshot with the rows of a delta put in; what it does not name is the same object. */
export function merge(snapshot: ISnapshot, delta: Delta): ISnapshot {
  const merged: ISnapshot = { ...snapshot };
  if (delta.cluster) {
    merged.cluster = delta.cluster;
  }
  for (const section of SECTIONS) {
    const changes = delta[section];
    if (changes) {
      Object.assign(merged, {
        [section]: mergeRows<unknown>(snapshot[section], changes)
      });
    }
  }
  return merged;
}

function mergeRows<Row>(
  rows: Record<string, Row>,
  changes: Record<string, Row | null>
): Record<string, Row> {
  const merged = { ...rows };
  for (const [id, row] of Object.entries(changes)) {
    if (row === null) {
      delete merged[id];
    } else {
      merged[id] = row;
    }
  }
  return merged;
}
