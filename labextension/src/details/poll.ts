import { Poll } from '@lumino/polling';
import * as React from 'react';

import { useServices } from '../components/services';

/** What was asked for: the last answer, and why there is none newer. */
export interface IAnswer<T> {
  value: T | null;
  trouble: string;
  /** Ask now. */
  again: () => void;
}

/** Milliseconds between two questions while a run lives. */
const LIVE = 1500;

/**
 * The answer to a question that is asked again for as long as it may change (`live`) and somebody
 * looks. Another `question` begins anew; the one before is forgotten, also when its answer is late.
 */
export function useAnswer<T>(question: () => Promise<T>, live: boolean): IAnswer<T> {
  const { scroller } = useServices();
  const [answer, setAnswer] = React.useState<{ value: T | null; trouble: string }>({
    value: null,
    trouble: ''
  });
  const [asked, setAsked] = React.useState(0);
  React.useEffect(() => {
    let current = true;
    let answered = false;
    const poll = new Poll({
      name: 'aios-jupyter:details',
      factory: async () => {
        try {
          const value = await question();
          answered = true;
          if (current) {
            setAnswer({ value, trouble: '' });
          }
        } catch (error) {
          if (current) {
            const trouble = error instanceof Error ? error.message : String(error);
            setAnswer(before => ({ ...before, trouble }));
          }
          throw error;
        }
      },
      frequency: { interval: LIVE, backoff: true, max: 20 * LIVE },
      // A page in a tab that is not shown has no size.
      standby: () =>
        document.hidden || scroller.offsetParent === null || (answered && !live)
    });
    return () => {
      current = false;
      poll.dispose();
    };
  }, [question, live, asked, scroller]);
  const again = React.useCallback(() => setAsked(count => count + 1), []);
  return { ...answer, again };
}
