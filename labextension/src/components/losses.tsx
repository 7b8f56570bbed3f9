import * as React from 'react';

import { Losses } from '../losses';

/** What would be lost, one line each, as the body of a dialog. */
export function losses(sentences: Losses): React.ReactElement {
  return (
    <ul className="aios-Losses">
      {sentences.map(sentence => (
        <li key={sentence}>{sentence}</li>
      ))}
    </ul>
  );
}
