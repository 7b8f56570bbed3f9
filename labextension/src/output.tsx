import { ReactWidget } from '@jupyterlab/apputils';
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { Lines } from './components/plot';
import { curvesOf, ICurve } from './curves';
import { metric, metricName } from './format';
import { ILook } from './plot';

/** What `aios_jupyter/notebook/curves.py` shows; other front ends take the picture beside it. */
export const CURVES = 'application/vnd.aios.curves+json';

/** Draws the curves of a run in a cell's output, again with each update. */
export class CurvesOutput extends ReactWidget implements IRenderMime.IRenderer {
  constructor(private _trans: TranslationBundle) {
    super();
    this.addClass('aios-Curves');
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this._curves = curvesOf(model.data[CURVES]);
    this.update();
    await this.renderPromise;
  }

  protected override render(): React.ReactElement {
    return (
      <>
        {this._curves.map(curve => (
          <Curve curve={curve} key={curve.name} trans={this._trans} />
        ))}
      </>
    );
  }

  private _curves: ICurve[] = [];
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
