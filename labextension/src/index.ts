import {
  ILayoutRestorer,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette, IToolbarWidgetRegistry } from '@jupyterlab/apputils';
import { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStateDB } from '@jupyterlab/statedb';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { Api } from './api';
import { addCommands, PALETTE } from './commands';
import { Pages } from './details/widget';
import { Feed } from './feed';
import { ClusterModel } from './model';
import { ClusterPanel } from './panel';
import { addNotebookCommands } from './notebook/commands';
import { LeaseIndicator } from './notebook/indicator';
import { Kernels } from './notebook/kernels';
import { followTrials } from './notebook/trials';
import { Notifier } from './notifier';
import { CURVES, CurvesOutput } from './output';
import { follow, speak } from './preferences';
import { Datasets } from './datasets';
import { Registry } from './registry';
import { Sight } from './sight';
import { StatusItem } from './status';
import { CommandIDs, IClusterModel } from './tokens';

export { IClusterModel } from './tokens';
export type { ClusterModel } from './model';

/** The cluster's state, fed by the server. */
const model: JupyterFrontEndPlugin<ClusterModel> = {
  id: 'aios-jupyter:model',
  description: 'Keeps the state of the AIOS cluster.',
  autoStart: true,
  provides: IClusterModel,
  optional: [ISettingRegistry, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    settings: ISettingRegistry | null,
    translator: ITranslator | null
  ) => {
    speak(settings, (translator ?? nullTranslator).load('aios_jupyter'));
    const cluster = new ClusterModel();
    const feed = new Feed({
      api: new Api(app.serviceManager.serverSettings),
      bus: app.serviceManager.events.stream,
      model: cluster
    });
    void follow(settings, ({ pollSeconds }) => (feed.interval = pollSeconds * 1000));
    // What is asked for before the layout is there would only delay it.
    void app.restored.then(() => feed.start());
    return cluster;
  }
};

/** The sidebar, and the commands it uses. */
const sidebar: JupyterFrontEndPlugin<void> = {
  id: 'aios-jupyter:sidebar',
  description: 'Shows the AIOS cluster in the sidebar.',
  autoStart: true,
  requires: [IClusterModel],
  optional: [ICommandPalette, ILayoutRestorer, ISettingRegistry, IStateDB, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    cluster: ClusterModel,
    palette: ICommandPalette | null,
    restorer: ILayoutRestorer | null,
    settings: ISettingRegistry | null,
    state: IStateDB | null,
    translator: ITranslator | null
  ) => {
    const trans = (translator ?? nullTranslator).load('aios_jupyter');
    const { commands } = app;
    const api = new Api(app.serviceManager.serverSettings);
    const registry = new Registry(api, cluster);
    const datasets = new Datasets(api, cluster);
    const panel = new ClusterPanel({
      commands,
      datasets,
      model: cluster,
      registry,
      state,
      trans
    });
    const pages = new Pages(app.shell, {
      api,
      commands,
      model: cluster,
      registry,
      trans
    });
    addCommands({ app, api, model: cluster, pages, panel: panel.id, registry, trans });
    app.shell.add(panel, 'left', { rank: 450 });
    restorer?.add(panel, panel.id);
    void restorer?.restore(pages.tracker, {
      command: CommandIDs.openDetails,
      args: ({ content }) => ({ kind: content.kind, id: content.subject }),
      name: ({ content }) => `${content.kind}:${content.subject}`
    });
    const notifier = new Notifier(cluster, commands, trans);
    void follow(settings, ({ hiddenSections, notifications }) => {
      panel.hiddenSections = hiddenSections;
      notifier.on = notifications;
    });
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

/** What a notebook has of the cluster: an item in its toolbar, and commands for its cells. */
const notebook: JupyterFrontEndPlugin<void> = {
  id: 'aios-jupyter:notebook',
  description: 'Shows in each notebook which devices its kernel holds, and leases more.',
  autoStart: true,
  requires: [IClusterModel, INotebookTracker],
  optional: [ICommandPalette, IToolbarWidgetRegistry, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    cluster: ClusterModel,
    tracker: INotebookTracker,
    palette: ICommandPalette | null,
    toolbars: IToolbarWidgetRegistry | null,
    translator: ITranslator | null
  ) => {
    const trans = (translator ?? nullTranslator).load('aios_jupyter');
    const { commands } = app;
    const kernels = new Kernels(new Api(app.serviceManager.serverSettings));
    addNotebookCommands(app, tracker, cluster, trans);
    followTrials(commands);
    toolbars?.addFactory<NotebookPanel>(
      'Notebook',
      'aios-lease',
      panel => new LeaseIndicator(panel, kernels, { commands, trans }, new Sight(cluster))
    );
    for (const command of [CommandIDs.allocate, CommandIDs.runCell]) {
      palette?.addItem({ command, category: 'AIOS' });
    }
  }
};

/** The curves of runs in cells' outputs. */
const output: JupyterFrontEndPlugin<void> = {
  id: 'aios-jupyter:output',
  description: 'Draws the curves of runs in the outputs of cells.',
  autoStart: true,
  requires: [IRenderMimeRegistry],
  optional: [ITranslator],
  activate: (
    _: JupyterFrontEnd,
    rendermime: IRenderMimeRegistry,
    translator: ITranslator | null
  ) => {
    const trans = (translator ?? nullTranslator).load('aios_jupyter');
    rendermime.addFactory(
      { safe: true, mimeTypes: [CURVES], createRenderer: () => new CurvesOutput(trans) },
      0
    );
  }
};

export default [model, sidebar, status, notebook, output];
