import { JupyterFrontEnd } from '@jupyterlab/application';
import { MainAreaWidget, WidgetTracker } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import * as React from 'react';

import { IApi } from '../api';
import { ServicesProvider } from '../components/services';
import { aiosIcon } from '../icons';
import { ClusterModel } from '../model';
import { deviceName } from '../overview';
import { Registry } from '../registry';
import { Sight } from '../sight';
import { SightWidget } from '../sightwidget';
import { DatasetDetails } from './dataset';
import { DeviceDetails } from './device';
import { LeaseDetails } from './lease';
import { ModelDetails } from './model';
import { RunDetails, RunTab } from './run';

/** What has a page of its own. */
export type Kind = 'dataset' | 'device' | 'lease' | 'model' | 'run';

const KINDS: readonly string[] = ['dataset', 'device', 'lease', 'model', 'run'];

/** Whether a string, from a saved layout or another extension, is a kind of page. */
export function isKind(text: unknown): text is Kind {
  return typeof text === 'string' && KINDS.includes(text);
}

/** All about one run, device, lease, model or dataset, in the main area. */
export class Details extends SightWidget {
  constructor(
    readonly kind: Kind,
    readonly subject: string,
    private _options: Details.IOptions
  ) {
    super(new Sight(_options.model));
    this.addClass('aios-Details');
    this.node.tabIndex = -1;
  }

  /** Which tab of a run is shown. */
  set tab(tab: RunTab) {
    this._tab = tab;
    this.update();
  }

  protected override render(): React.ReactElement {
    const { api, commands, registry, trans } = this._options;
    const services = {
      commands,
      registry,
      scroller: this.node,
      sight: this.sight,
      trans
    };
    return <ServicesProvider value={services}>{this._page(api)}</ServicesProvider>;
  }

  private _page(api: IApi): React.ReactElement {
    const id = this.subject;
    switch (this.kind) {
      case 'dataset':
        return <DatasetDetails api={api} name={id} />;
      case 'device':
        return <DeviceDetails id={id} />;
      case 'lease':
        return <LeaseDetails id={id} />;
      case 'model':
        return <ModelDetails api={api} name={id} />;
      case 'run':
        return (
          <RunDetails id={id} api={api} tab={this._tab} onTab={tab => (this.tab = tab)} />
        );
    }
  }

  private _tab: RunTab = 'charts';
}

export namespace Details {
  export interface IOptions {
    api: IApi;
    commands: CommandRegistry;
    model: ClusterModel;
    registry: Registry;
    trans: TranslationBundle;
  }
}

/** The open pages: each subject has one. */
export class Pages {
  constructor(
    private _shell: JupyterFrontEnd.IShell,
    private _options: Details.IOptions
  ) {}

  /**
   * For the layout to be restored by. What is saved under its namespace is taken for a page, and
   * removed when it is none: so nothing else is saved there.
   */
  readonly tracker = new WidgetTracker<MainAreaWidget<Details>>({
    namespace: 'aios-jupyter-details'
  });

  /** Open a page, or bring it to the front. */
  open(kind: Kind, id: string, tab?: RunTab): void {
    const key = `aios-jupyter:details-${kind}-${id}`;
    let widget = this.tracker.find(open => open.id === key);
    if (!widget) {
      const content = new Details(kind, id, this._options);
      widget = new MainAreaWidget({ content });
      widget.id = key;
      widget.title.label = this._title(kind, id);
      widget.title.icon = aiosIcon;
      widget.title.closable = true;
      void this.tracker.add(widget);
      this._shell.add(widget, 'main', { mode: 'tab-after' });
    }
    if (tab) {
      widget.content.tab = tab;
    }
    this._shell.activateById(key);
  }

  private _title(kind: Kind, id: string): string {
    const snapshot = this._options.model.snapshot;
    switch (kind) {
      case 'device': {
        const device = snapshot?.devices[id];
        return device ? `${deviceName(device, id)} · ${device.host}` : id;
      }
      case 'lease':
        return snapshot?.leases[id]?.label || id;
      case 'run':
        return snapshot?.runs[id]?.name || id;
      case 'dataset':
      case 'model':
        return id;
    }
  }
}
