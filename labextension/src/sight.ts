import { IDisposable } from '@lumino/disposable';
import { ISignal, Signal } from '@lumino/signaling';

import { ClusterModel } from './model';

/**
 * The model as far as somebody is looking: changes and seconds pass only while visible.
 *
 * A panel that is out of sight draws nothing, and catches up when it is shown. Changes that come
 * within one frame are drawn together.
 */
export class Sight implements IDisposable {
  constructor(readonly model: ClusterModel) {
    model.changed.connect(this._onChanged, this);
  }

  /** The model has changed. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** A second has passed. */
  get ticked(): ISignal<this, void> {
    return this._ticked;
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  set visible(visible: boolean) {
    if (visible === (this._timer !== null)) {
      return;
    }
    if (this._timer !== null) {
      clearInterval(this._timer);
      this._timer = null;
      return;
    }
    this._timer = setInterval(() => this._ticked.emit(), 1000);
    this._changed.emit();
    this._ticked.emit();
  }

  dispose(): void {
    this.visible = false;
    this._disposed = true;
    this.model.changed.disconnect(this._onChanged, this);
    Signal.clearData(this);
  }

  private _onChanged(): void {
    if (this._timer === null || this._asked) {
      return;
    }
    this._asked = true;
    requestAnimationFrame(() => {
      this._asked = false;
      if (this._timer !== null) {
        this._changed.emit();
      }
    });
  }

  private _changed = new Signal<this, void>(this);
  private _ticked = new Signal<this, void>(this);
  private _timer: ReturnType<typeof setInterval> | null = null;
  private _asked = false;
  private _disposed = false;
}
