import { ReactWidget } from '@jupyterlab/apputils';
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { TranslationBundle } from '@jupyterlab/translation';
import { Message } from '@lumino/messaging';
import * as React from 'react';
import { createPortal } from 'react-dom';

import { Lines } from './components/plot';
import { curvesOf, ICurve, placeOf } from './curves';
import { metric, metricName } from './format';
import { ILook } from './plot';

/** What `aios_jupyter/notebook/curves.py` shows; other front ends take the picture beside it. */
export const CURVES = 'application/vnd.aios.curves+json';

/**
 * Draws the curves of a run in a cell's output, again with each update.
 *
 * While the card of the run lives, which is another output of the cell, they are drawn within it: a
 * widget's own outputs would be made anew with each update, and lose what is zoomed or pointed at.
 */
export class CurvesOutput extends ReactWidget implements IRenderMime.IRenderer {
  constructor(private _trans: TranslationBundle) {
    super();
    this.addClass('aios-Curves');
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this._curves = curvesOf(model.data[CURVES]);
    this._place = placeOf(model.data[CURVES]);
    this.update();
    await this.renderPromise;
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this._outputs = this.node.closest<HTMLElement>('.jp-OutputArea');
    if (this._outputs && this._place) {
      this._watcher.observe(this._outputs, { childList: true, subtree: true });
    }
  }

  protected override onBeforeDetach(message: Message): void {
    this._watcher.disconnect();
    super.onBeforeDetach(message);
  }

  protected override render(): React.ReactElement {
    const curves = this._curves.map(curve => (
      <Curve curve={curve} key={curve.name} trans={this._trans} />
    ));
    this._within = this._found();
    return <>{this._within ? createPortal(curves, this._within) : curves}</>;
  }

  /** The place in the card, while there is one. */
  private _found(): Element | null {
    return this._place ? (this._outputs?.querySelector(this._place) ?? null) : null;
  }

  private _curves: ICurve[] = [];
  /** A selector; empty for none. */
  private _place = '';
  private _outputs: HTMLElement | null = null;
  private _within: Element | null = null;
  /** Cards come after their curves, when a page is loaded, and go before them. */
  private _watcher = new MutationObserver(() => {
    if (this._found() !== this._within) {
      this.update();
    }
  });
}

function Curve(props: { curve: ICurve; trans: TranslationBundle }): React.ReactElement {
  const { curve, trans } = props;
  const { lines, look, last } = React.useMemo(() => {
    const look: ILook = { height: 130, xLabel: trans.__('step') };
    return {
      look,
      lines: [
        {
          label: metricName(curve.name),
          color: '--jp-brand-color1',
          course: { x: curve.x, y: curve.y }
        }
      ],
      last: curve.y[curve.y.length - 1]
    };
  }, [curve, trans]);
  const now = typeof last === 'number' ? metric(last) : '–';
  return (
    <figure className="aios-Chart" data-chart={curve.name}>
      <figcaption>
        {metricName(curve.name)} <strong>{now}</strong>
      </figcaption>
      <Lines
        label={trans.__(
          '%1: %2 values, the last %3',
          metricName(curve.name),
          curve.y.length,
          now
        )}
        lines={lines}
        look={look}
      />
    </figure>
  );
}
