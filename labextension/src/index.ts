import {
  ILayoutRestorer,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { IStateDB } from '@jupyterlab/statedb';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { Api } from './api';
import { addCommands, PALETTE } from './commands';
import { Feed } from './feed';
import { ClusterModel } from './model';
import { ClusterPanel } from './panel';
import { StatusItem } from './status';
import { IClusterModel } from './tokens';

export { IClusterModel } from './tokens';
export type { ClusterModel } from './model';

/** The cluster's state, fed by the server. */
const model: JupyterFrontEndPlugin<ClusterModel> = {
  id: 'aios-jupyter:model',
  description: 'Keeps the state of the AIOS cluster.',
  autoStart: true,
  provides: IClusterModel,
  activate: (app: JupyterFrontEnd) => {
    const cluster = new ClusterModel();
    const feed = new Feed({
      api: new Api(app.serviceManager.serverSettings),
      bus: app.serviceManager.events.stream,
      model: cluster
    });
    feed.start();
    return cluster;
  }
};

/** The sidebar, and the commands it uses. */
const sidebar: JupyterFrontEndPlugin<void> = {
  id: 'aios-jupyter:sidebar',
  description: 'Shows the AIOS cluster in the sidebar.',
  autoStart: true,
  requires: [IClusterModel],
  optional: [ICommandPalette, ILayoutRestorer, IStateDB, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    cluster: ClusterModel,
    palette: ICommandPalette | null,
    restorer: ILayoutRestorer | null,
    state: IStateDB | null,
    translator: ITranslator | null
  ) => {
    const trans = (translator ?? nullTranslator).load('aios_jupyter');
    const { commands } = app;
    const panel = new ClusterPanel({ commands, model: cluster, state, trans });
    const api = new Api(app.serviceManager.serverSettings);
    addCommands({ app, api, model: cluster, panel: panel.id, trans });
    app.shell.add(panel, 'left', { rank: 450 });
    restorer?.add(panel, panel.id);
    for (const command of PALETTE) {
      palette?.addItem({ command, category: 'AIOS' });
    }
  }
};

/** The status-bar item. */
const status: JupyterFrontEndPlugin<void> = {
  id: 'aios-jupyter:status',
  description: 'Shows free devices and the queue in the status bar.',
  autoStart: true,
  requires: [IClusterModel, IStatusBar],
  optional: [ITranslator],
  activate: (
    app: JupyterFrontEnd,
    cluster: ClusterModel,
    statusBar: IStatusBar,
    translator: ITranslator | null
  ) => {
    const trans = (translator ?? nullTranslator).load('aios_jupyter');
    statusBar.registerStatusItem(status.id, {
      item: new StatusItem(cluster, app.commands, trans),
      align: 'left',
      rank: 3
    });
  }
};

export default [model, sidebar, status];
