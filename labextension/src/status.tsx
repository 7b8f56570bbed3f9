import { ReactWidget, UseSignal } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import * as React from 'react';

import { aiosIcon } from './icons';
import { ClusterModel } from './model';
import { firstPlace, totals } from './overview';
import { CommandIDs } from './tokens';

/** The status-bar item: free and all devices, and the user's place in the queue. */
export class StatusItem extends ReactWidget {
  constructor(
    private _model: ClusterModel,
    private _commands: CommandRegistry,
    private _trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-mod-highlighted');
    this.id = 'aios-jupyter:status';
  }

  protected override render(): React.ReactElement {
    return <UseSignal signal={this._model.changed}>{() => this._draw()}</UseSignal>;
  }

  private _draw(): React.ReactElement {
    const { text, title } = this._words();
    return (
      <button
        aria-label={title}
        className="aios-Status"
        onClick={() => void this._commands.execute(CommandIDs.open)}
        title={title}
      >
        <aiosIcon.react tag="span" className="aios-Status-icon" />
        {text}
      </button>
    );
  }

  private _words(): { text: string; title: string } {
    const { snapshot, link } = this._model;
    const trans = this._trans;
    if (link === 'connecting') {
      return { text: '…', title: trans.__('Looking for a cluster…') };
    }
    if (!snapshot || link === 'lost') {
      return { text: trans.__('off'), title: trans.__('No AIOS cluster is running') };
    }
    const { free, devices, waiting } = totals(snapshot);
    const place = firstPlace(snapshot);
    const queue =
      waiting === 0
        ? ''
        : place === null
          ? ` · ${trans.__('%1 waiting', waiting)}`
          : ` · ${trans.__('you are number %1 of %2', place, waiting)}`;
    return {
      text: `${free}/${devices}${queue}`,
      title: trans.__('AIOS: %1 of %2 devices are free', free, devices) + queue
    };
  }
}
