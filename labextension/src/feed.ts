import { IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import { IApi } from './api';
import { ClusterModel } from './model';
import { EVENT_SCHEMA, IClusterEvent } from './schema';

/** An event of Jupyter's bus, as `app.serviceManager.events.stream` emits it. */
export interface IBusEvent {
  readonly schema_id: string;
}

/** Milliseconds between two looks: to make sure of a live stream, and by default in place of one. */
const CHECK = 15000;
const POLL = 1500;

/**
 * Feeds the model: one snapshot, then the events of Jupyter's bus.
 *
 * A look at the server's sequence number now and then finds a stream that has gone silent; then
 * the feed polls until an event arrives again.
 */
export class Feed implements IDisposable {
  constructor(options: Feed.IOptions) {
    this._api = options.api;
    this._model = options.model;
    this._bus = options.bus;
    this._poll = new Poll({
      name: 'aios-jupyter:snapshot',
      auto: false,
      factory: () => this._look(),
      frequency: { interval: CHECK, backoff: true, max: CHECK },
      standby: options.standby ?? 'when-hidden'
    });
  }

  get isDisposed(): boolean {
    return this._poll.isDisposed;
  }

  /** Milliseconds between two looks in place of a live stream. */
  interval = POLL;

  /** Listen, and ask for the first snapshot. */
  start(): void {
    this._bus.connect(this._onBusEvent, this);
    void this._poll.start();
  }

  /** Ask for the state now. */
  async refresh(): Promise<void> {
    await this._poll.refresh();
    await this._poll.tick;
  }

  dispose(): void {
    this._bus.disconnect(this._onBusEvent, this);
    Signal.clearData(this);
    this._poll.dispose();
  }

  private async _look(): Promise<void> {
    const before = this._model.position;
    let answer: IClusterEvent;
    this._asking = true;
    try {
      answer = await this._api.snapshot(before);
    } catch (error) {
      this._model.link = 'lost';
      this._pace(this.interval);
      throw error;
    } finally {
      this._asking = false;
    }
    const { stream, seq } = this._model.position;
    const ahead = answer.stream !== stream || answer.seq > seq;
    this._model.apply(answer);
    if (before.stream !== '' && ahead && !this._heard) {
      this._silent++;
    }
    this._heard = false;
    this._settle();
    this._waiting.splice(0).forEach(event => this._take(event));
    if (answer.snapshot && answer.stream !== before.stream) {
      this._model.history.seed(await this._api.history());
    }
  }

  private _onBusEvent(_: unknown, event: IBusEvent): void {
    if (event.schema_id !== EVENT_SCHEMA) {
      return;
    }
    this._heard = true;
    this._silent = 0;
    const clusterEvent = event as unknown as IClusterEvent;
    if (this._asking) {
      // The answer on its way may be older or newer than this event: the model sorts it out then.
      this._waiting.push(clusterEvent);
    } else {
      this._take(clusterEvent);
      this._settle();
    }
  }

  private _take(event: IClusterEvent): void {
    if (!this._model.apply(event)) {
      void this._poll.refresh();
    }
  }

  /** One answer that is ahead of the stream may have overtaken an event; two in a row may not. */
  private _settle(): void {
    this._model.link = this._silent > 1 ? 'polling' : 'live';
    this._pace(this._silent > 0 ? this.interval : CHECK);
  }

  private _pace(interval: number): void {
    if (this._poll.frequency.interval !== interval) {
      this._poll.frequency = { ...this._poll.frequency, interval };
    }
  }

  private _api: IApi;
  private _model: ClusterModel;
  private _bus: ISignal<unknown, IBusEvent>;
  private _poll: Poll<void, unknown>;
  private _asking = false;
  private _heard = false;
  private _silent = 0;
  private _waiting: IClusterEvent[] = [];
}

export namespace Feed {
  export interface IOptions {
    api: IApi;
    model: ClusterModel;
    bus: ISignal<unknown, IBusEvent>;
    standby?: Poll.Standby | (() => boolean | Poll.Standby);
  }
}
