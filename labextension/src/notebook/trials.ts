import { CommandRegistry } from '@lumino/commands';

import { CommandIDs } from '../tokens';

/**
 * Have the buttons "Try it" in the cards of endpoints open their forms. Kernels make them
 * (`aios_jupyter/notebook/html.py`), as HTML: a click is all that is known of one.
 */
export function followTrials(commands: CommandRegistry): void {
  document.body.addEventListener('click', ({ target }) => {
    const button = target instanceof Element && target.closest('.aios-card .aios-try');
    const run = button ? button.getAttribute('data-run') : null;
    if (run) {
      void commands.execute(CommandIDs.tryEndpoint, { run });
    }
  });
}
