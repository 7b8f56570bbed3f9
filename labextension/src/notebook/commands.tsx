import { JupyterFrontEnd } from '@jupyterlab/application';
import { Dialog, Notification, ReactWidget, showDialog } from '@jupyterlab/apputils';
import { PathExt } from '@jupyterlab/coreutils';
import { INotebookTracker, NotebookActions, NotebookPanel } from '@jupyterlab/notebook';
import { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { ClusterModel } from '../model';
import { CommandIDs } from '../tokens';
import { allocLine, cellOf, ICell, IWish, loadsMagics, onRanks } from './cells';

/** Commands that act on the open notebook. */
export function addNotebookCommands(
  app: JupyterFrontEnd,
  tracker: INotebookTracker,
  model: ClusterModel,
  trans: TranslationBundle
): void {
  const { commands } = app;
  const none = { args: { type: 'object', properties: {} } };
  const isEnabled = () => tracker.currentWidget !== null;

  commands.addCommand(CommandIDs.allocate, {
    label: trans.__('Lease Devices for This Notebook…'),
    describedBy: none,
    isEnabled,
    execute: async () => {
      const panel = tracker.currentWidget;
      const wish = panel && (await askWish(trans));
      if (!panel || !wish) {
        return;
      }
      const line = allocLine(wish);
      if (line === null) {
        Notification.error(
          trans.__(
            'Give a number of devices such as 2 or 2:4, and a time such as 30m or 2h.'
          ),
          { autoClose: 8000 }
        );
        return;
      }
      await ensureMagics(panel);
      const notebook = panel.content;
      NotebookActions.insertAbove(notebook);
      notebook.activeCell?.model.sharedModel.setSource(line);
      await NotebookActions.runAndAdvance(notebook, panel.sessionContext);
    }
  });

  commands.addCommand(CommandIDs.runCell, {
    label: trans.__('Run Cell on AIOS'),
    caption: trans.__(
      'Put %1 on top of the cell and run it on leased devices',
      '%%aios train'
    ),
    describedBy: none,
    isEnabled,
    execute: async () => {
      const panel = tracker.currentWidget;
      const cell = panel?.content.activeCell;
      if (!panel || cell?.model.type !== 'code') {
        return;
      }
      await ensureMagics(panel);
      const source = onRanks(cell.model.sharedModel.getSource());
      if (source !== null) {
        cell.model.sharedModel.setSource(source);
      }
      await NotebookActions.run(panel.content, panel.sessionContext);
    }
  });

  commands.addCommand(CommandIDs.jump, {
    label: trans.__('Go to the Cell of an AIOS Run'),
    describedBy: {
      args: {
        type: 'object',
        properties: { run: { type: 'string' } },
        required: ['run']
      }
    },
    execute: async args => {
      const id = args['run'];
      const run = typeof id === 'string' ? model.snapshot?.runs[id] : undefined;
      const panel = run && (await notebookOf(run.label));
      if (!run || !panel) {
        Notification.warning(
          trans.__('The notebook %1 is not open here.', run?.label ?? ''),
          { autoClose: 5000 }
        );
        return;
      }
      app.shell.activateById(panel.id);
      const index = cellOf(run.name, cells(panel));
      if (index >= 0) {
        panel.content.activeCellIndex = index;
        await panel.content.scrollToItem(index, 'center');
      }
    }
  });

  /** The notebook of that name, opened where a kernel of it runs. */
  async function notebookOf(name: string): Promise<NotebookPanel | null> {
    const open = tracker.find(panel => PathExt.basename(panel.context.path) === name);
    if (open) {
      return open;
    }
    const running = [...app.serviceManager.sessions.running()];
    const session = running.find(one => PathExt.basename(one.path) === name);
    if (!session) {
      return null;
    }
    await commands.execute('docmanager:open', { path: session.path });
    return tracker.find(panel => panel.context.path === session.path) ?? null;
  }
}

/** A notebook whose kernel has no magics of ours gets a first cell that loads them. */
async function ensureMagics(panel: NotebookPanel): Promise<void> {
  const sources = cells(panel).map(cell => cell.source);
  if (loadsMagics(panel.sessionContext.session?.kernel?.name ?? '', sources)) {
    return;
  }
  const notebook = panel.content;
  const active = notebook.activeCellIndex;
  notebook.activeCellIndex = 0;
  NotebookActions.insertAbove(notebook);
  notebook.activeCell?.model.sharedModel.setSource('%load_ext aios_jupyter');
  await NotebookActions.run(notebook, panel.sessionContext);
  notebook.activeCellIndex = active + 1;
}

function cells(panel: NotebookPanel): ICell[] {
  return panel.content.widgets.map(({ model }) => {
    const code = model.type === 'code' ? model.sharedModel : null;
    const count = code && 'execution_count' in code ? code.execution_count : null;
    return {
      source: model.sharedModel.getSource(),
      count: typeof count === 'number' ? count : null,
      running: !!code && 'executionState' in code && code['executionState'] === 'running'
    };
  });
}

/** Ask how many devices, and for how long; null when nothing is wanted after all. */
async function askWish(trans: TranslationBundle): Promise<IWish | null> {
  const form = new WishForm(trans);
  const answer = await showDialog({
    title: trans.__('Lease devices for this notebook'),
    body: form,
    buttons: [Dialog.cancelButton(), Dialog.okButton({ label: trans.__('Lease') })],
    focusNodeSelector: 'input'
  });
  return answer.button.accept ? answer.value : null;
}

class WishForm extends ReactWidget implements Dialog.IBodyWidget<IWish> {
  constructor(private _trans: TranslationBundle) {
    super();
    this.addClass('aios-Wish');
  }

  getValue(): IWish {
    return { ...this._wish };
  }

  protected override render(): React.ReactElement {
    const trans = this._trans;
    return (
      <>
        <label>
          {trans.__('Devices')}
          <input
            className="jp-mod-styled"
            defaultValue={this._wish.devices}
            onChange={event => (this._wish.devices = event.currentTarget.value)}
          />
        </label>
        <label>
          {trans.__('For how long')}
          <input
            className="jp-mod-styled"
            defaultValue={this._wish.time}
            onChange={event => (this._wish.time = event.currentTarget.value)}
          />
        </label>
        <p className="aios-Muted">
          {trans.__(
            'A cell above the active one says so and runs; 2:4 takes as many as are free of 2 to 4. Without a time it lasts until the kernel ends.'
          )}
        </p>
      </>
    );
  }

  private _wish: IWish = { devices: '1', time: '1h' };
}
