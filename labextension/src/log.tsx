import { JupyterFrontEnd } from '@jupyterlab/application';
import { MainAreaWidget, ReactWidget } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { Message } from '@lumino/messaging';
import { Poll } from '@lumino/polling';
import { Signal } from '@lumino/signaling';
import * as React from 'react';

import { IApi } from './api';
import { aiosIcon } from './icons';
import { ClusterModel } from './model';
import { isLive } from './schema';

/** Milliseconds between two looks at the log of a live run. */
const REFRESH = 2000;

/** The last lines of a run's log, in the main area; follows while the run lives. */
export class RunLog extends ReactWidget {
  constructor(
    private _run: string,
    private _options: RunLog.IOptions
  ) {
    super();
    this.addClass('aios-Log');
    this._poll = new Poll({
      name: `aios-jupyter:log-${_run}`,
      factory: () => this._fetch(),
      frequency: { interval: REFRESH, backoff: true, max: 30000 },
      standby: () => !this.isVisible || this._complete
    });
  }

  /** Show the log of a run; an open one is brought to the front. */
  static open(run: string, options: RunLog.IOptions): void {
    const { app, model } = options;
    const id = `aios-jupyter:log-${run}`;
    const open = [...app.shell.widgets('main')].find(widget => widget.id === id);
    if (!open) {
      const content = new RunLog(run, options);
      const widget = new MainAreaWidget({ content });
      widget.id = id;
      widget.title.label = model.snapshot?.runs[run]?.name || run;
      widget.title.icon = aiosIcon;
      widget.title.closable = true;
      app.shell.add(widget, 'main', { mode: 'split-bottom' });
    }
    app.shell.activateById(id);
  }

  override dispose(): void {
    this._poll.dispose();
    Signal.clearData(this);
    super.dispose();
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    void this._poll.refresh();
  }

  protected override onUpdateRequest(message: Message): void {
    const atEnd = this._atEnd;
    super.onUpdateRequest(message);
    if (atEnd) {
      void this.renderPromise?.then(() => this._scrollToEnd());
    }
  }

  protected override render(): React.ReactElement {
    const { trans } = this._options;
    const ranks = this._row?.world_size ?? 1;
    return (
      <>
        <div className="aios-Log-head">
          <label>
            {trans.__('Rank')}{' '}
            <select
              value={this._rank ?? ''}
              onChange={event => this._choose(event.currentTarget.value)}
            >
              <option value="">{trans.__('all')}</option>
              {Array.from({ length: ranks }, (_, rank) => (
                <option key={rank} value={rank}>
                  {rank}
                </option>
              ))}
            </select>
          </label>
          <span className="aios-Muted">{this._row?.state ?? ''}</span>
        </div>
        {this._problem && <p className="aios-Reason">{this._problem}</p>}
        <pre tabIndex={0} aria-label={trans.__('Log')}>
          {this._lines.length > 0 || !this._fetched || this._problem
            ? this._lines.join('\n')
            : trans.__('Nothing has been printed.')}
        </pre>
      </>
    );
  }

  private async _fetch(): Promise<void> {
    // A log that was asked for after its run's end has all there is.
    const ended = !(this._row && isLive(this._row));
    try {
      const log = await this._options.api.runLog(this._run, this._rank);
      this._lines = log.lines.map(line => line.replace(/\n$/, ''));
      this._problem = '';
    } catch (error) {
      this._problem = error instanceof Error ? error.message : String(error);
    }
    this._fetched = true;
    this._complete = ended;
    this.update();
  }

  private _choose(rank: string): void {
    this._rank = rank === '' ? null : Number(rank);
    this._complete = false;
    void this._poll.refresh();
    this.update();
  }

  private get _row() {
    return this._options.model.snapshot?.runs[this._run];
  }

  private get _atEnd(): boolean {
    const pre = this.node.querySelector('pre');
    return !pre || pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 20;
  }

  private _scrollToEnd(): void {
    const pre = this.node.querySelector('pre');
    if (pre) {
      pre.scrollTop = pre.scrollHeight;
    }
  }

  private _poll: Poll;
  private _rank: number | null = null;
  private _lines: string[] = [];
  private _problem = '';
  private _fetched = false;
  private _complete = false;
}

export namespace RunLog {
  export interface IOptions {
    app: JupyterFrontEnd;
    api: IApi;
    model: ClusterModel;
    trans: TranslationBundle;
  }
}
