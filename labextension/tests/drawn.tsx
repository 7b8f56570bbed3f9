import type { CommandRegistry } from '@lumino/commands';
import * as React from 'react';
import { renderToStaticMarkup } from 'react-dom/server';

import { ServicesProvider } from '../src/components/services';
import { ClusterModel } from '../src/model';
import { ISnapshot } from '../src/schema';
import { Sight } from '../src/sight';
import { snapshot, trans } from './rows';

/** The HTML of an element beside a cluster. */
export function drawn(
  element: React.ReactElement,
  cluster: ISnapshot = snapshot()
): string {
  const model = new ClusterModel();
  model.apply({ stream: 's', seq: 1, time: Date.now() / 1000, snapshot: cluster });
  const services = {
    commands: null as unknown as CommandRegistry,
    scroller: null as unknown as HTMLElement,
    sight: new Sight(model),
    trans
  };
  return renderToStaticMarkup(
    <ServicesProvider value={services}>{element}</ServicesProvider>
  );
}
