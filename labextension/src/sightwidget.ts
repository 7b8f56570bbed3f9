import { ReactWidget } from '@jupyterlab/apputils';
import { Message } from '@lumino/messaging';

import { Sight } from './sight';

/** A widget that draws the model while it is in sight. */
export abstract class SightWidget extends ReactWidget {
  constructor(readonly sight: Sight) {
    super();
  }

  override dispose(): void {
    this.sight.dispose();
    super.dispose();
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this.sight.visible = true;
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this.sight.visible = this.isVisible;
  }

  protected override onBeforeHide(message: Message): void {
    this.sight.visible = false;
    super.onBeforeHide(message);
  }

  protected override onBeforeDetach(message: Message): void {
    this.sight.visible = false;
    super.onBeforeDetach(message);
  }
}
