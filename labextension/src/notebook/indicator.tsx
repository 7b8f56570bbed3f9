import { UseSignal } from '@jupyterlab/apputils';
import { NotebookPanel } from '@jupyterlab/notebook';
import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import { Menu } from '@lumino/widgets';
import * as React from 'react';

import { ServicesProvider, IServices, useModel, useNow } from '../components/services';
import { duration } from '../format';
import { aiosIcon } from '../icons';
import { Sight } from '../sight';
import { SightWidget } from '../sightwidget';
import { CommandIDs } from '../tokens';
import { holdings, IHoldings, Kernels } from './kernels';

/** In a notebook's toolbar: the devices that its kernel holds and for how long, with a menu. */
export class LeaseIndicator extends SightWidget {
  constructor(
    private _panel: NotebookPanel,
    private _kernels: Kernels,
    private _services: Omit<IServices, 'scroller' | 'sight'>,
    sight: Sight
  ) {
    super(sight);
    this.addClass('aios-Indicator');
    const { sessionContext } = _panel;
    sessionContext.kernelChanged.connect(this._ask, this);
    sessionContext.statusChanged.connect(this._onStatus, this);
    this._ask();
  }

  override dispose(): void {
    const { sessionContext } = this._panel;
    sessionContext.kernelChanged.disconnect(this._ask, this);
    sessionContext.statusChanged.disconnect(this._onStatus, this);
    super.dispose();
  }

  protected override render(): React.ReactElement {
    const value = { ...this._services, scroller: this.node, sight: this.sight };
    const { commands, trans } = this._services;
    return (
      <ServicesProvider value={value}>
        <UseSignal signal={this._kernels.changed}>
          {() => (
            <Holding
              kernel={this._panel.sessionContext.session?.kernel?.id ?? ''}
              kernels={this._kernels}
              onClick={(button, held) => openMenu(button, held, commands, trans)}
              trans={trans}
            />
          )}
        </UseSignal>
      </ServicesProvider>
    );
  }

  private _ask(): void {
    if (this._panel.sessionContext.session?.kernel) {
      // Without an answer it says that nothing is held; the panel tells what is wrong.
      void this._kernels.refresh().catch(reason => console.warn('aios:', reason));
    }
    this.update();
  }

  private _onStatus(_: unknown, status: string): void {
    // A kernel that was restarted is another process under the same id.
    const starting = status === 'starting' || status === 'restarting';
    if (this._starting && !starting) {
      this._ask();
    }
    this._starting = starting || status === 'autorestarting';
  }

  private _starting = false;
}

function Holding(props: {
  kernel: string;
  kernels: Kernels;
  onClick: (button: HTMLElement, held: IHoldings) => void;
  trans: TranslationBundle;
}): React.ReactElement {
  const { kernel, kernels, trans } = props;
  const snapshot = useModel(model => model.snapshot);
  const now = useNow();
  const process = kernels.process(kernel);
  const held =
    process && snapshot ? holdings(process, snapshot) : { leases: [], requests: [] };
  const { text, title } = words(held, now, trans);
  const soon = held.leases.some(lease => lease.warned);
  return (
    <button
      aria-haspopup="menu"
      aria-label={title}
      className={`aios-Indicator-button jp-ToolbarButtonComponent ${soon ? 'aios-mod-warn' : ''}`}
      data-held={held.leases.length}
      onClick={event => props.onClick(event.currentTarget, held)}
      title={title}
    >
      <aiosIcon.react tag="span" className="aios-Status-icon" />
      <span>{text}</span>
    </button>
  );
}

/** What the indicator says, and in full what it means. */
export function words(
  held: IHoldings,
  now: number,
  trans: TranslationBundle
): { text: string; title: string } {
  const [lease] = held.leases;
  if (lease) {
    const count = held.leases.reduce((sum, one) => sum + one.devices.length, 0);
    const devices = trans._n('%1 device', '%1 devices', count);
    const left =
      lease.state === 'ending'
        ? trans.__('ending')
        : lease.expires === null
          ? ''
          : trans.__('%1 left', duration(lease.expires - now));
    const text = [devices, left].filter(Boolean).join(' · ');
    return { text, title: trans.__('This notebook’s kernel holds %1', text) };
  }
  const [request] = held.requests;
  if (request) {
    const text = trans.__('waits, number %1', request.position);
    return { text, title: trans.__('This notebook’s kernel %1 in the queue', text) };
  }
  const text = trans.__('no devices');
  return { text, title: trans.__('This notebook’s kernel holds no devices') };
}

function openMenu(
  button: HTMLElement,
  held: IHoldings,
  commands: CommandRegistry,
  trans: TranslationBundle
): void {
  const menu = new Menu({ commands });
  menu.title.label = trans.__('AIOS');
  menu.addItem({ command: CommandIDs.allocate });
  menu.addItem({ command: CommandIDs.runCell });
  for (const lease of held.leases) {
    const args = { lease: lease.id };
    menu.addItem({ type: 'separator' });
    menu.addItem({
      command: CommandIDs.openDetails,
      args: { kind: 'lease', id: lease.id }
    });
    if (lease.state === 'active') {
      if (lease.expires !== null) {
        menu.addItem({ command: CommandIDs.extend, args });
      }
      menu.addItem({ command: CommandIDs.release, args });
    }
  }
  for (const request of held.requests) {
    menu.addItem({ type: 'separator' });
    menu.addItem({ command: CommandIDs.cancel, args: { request: request.id } });
  }
  const { left, bottom } = button.getBoundingClientRect();
  menu.aboutToClose.connect(() => button.focus());
  menu.open(left, bottom);
}
