/**
 * What is drawn beside React: canvases, of which there may be dozens that all change at once.
 *
 * They are drawn within a part of each frame; what does not fit is drawn in the next one, so that
 * the page answers to a key in between.
 */

/** Milliseconds of a frame. */
const BUDGET = 6;

const jobs = new Map<object, () => void>();
let asked = false;

/** Have something drawn soon; another job of the same owner takes the place of one that waits. */
export function paint(owner: object, job: () => void): void {
  jobs.set(owner, job);
  ask();
}

/** The owner is gone. */
export function forget(owner: object): void {
  jobs.delete(owner);
}

function ask(): void {
  if (!asked && jobs.size > 0) {
    asked = true;
    requestAnimationFrame(() => void run());
  }
}

async function run(): Promise<void> {
  const began = performance.now();
  for (const [owner, job] of jobs) {
    jobs.delete(owner);
    job();
    // uPlot draws in a microtask of its own: its time counts too.
    await Promise.resolve();
    if (performance.now() - began > BUDGET) {
      break;
    }
  }
  asked = false;
  ask();
}
