/**
 * Keys for everything that the panel does.
 */
import { Session, type Tool } from './session';

export interface Shortcut {
  keys: string;
  what: string;
  run: (session: Session, event: KeyboardEvent) => void;
  /** Whether it also works while a text is typed. */
  anywhere?: boolean;
}

const tool = (chosen: Tool) => (session: Session) => session.setTool(chosen);
const panel = (name: string) => (session: Session) => session.dispatchEvent(new Event(name));

/** `keys` is a key's name, after "Ctrl+" or "Ctrl+Shift+" where these are held; Cmd counts as Ctrl. */
export const SHORTCUTS: readonly Shortcut[] = [
  { keys: 't', what: 'Go to the text field', run: panel('focus-text') },
  { keys: 'p', what: 'Click: in the finding', run: tool('positive') },
  { keys: 'n', what: 'Click: not in the finding', run: tool('negative') },
  { keys: 'o', what: 'Box around the finding', run: tool('box') },
  { keys: 's', what: 'Scribble in the finding (with Alt: outside)', run: tool('scribble') },
  { keys: 'b', what: 'Brush', run: tool('brush') },
  { keys: 'e', what: 'Eraser', run: tool('eraser') },
  {
    keys: 'Escape',
    what: 'Back to looking; cancels what runs',
    run: (session) => {
      if (session.work) {
        void session.cancel();
      } else {
        session.setTool('navigate');
      }
    },
  },
  { keys: '[', what: 'Smaller brush', run: (session) => resize(session, 0.8) },
  { keys: ']', what: 'Larger brush', run: (session) => resize(session, 1.25) },
  { keys: 'g', what: 'Carry the finding through the volume', run: (session) => void session.refine({}, true) },
  {
    keys: 'h',
    what: 'Hide and show all masks',
    run: (session) => {
      session.hidden = !session.hidden;
      session.changed();
    },
  },
  { keys: 'm', what: 'Saliency map', run: (session) => session.toggleMap('saliency') },
  { keys: 'u', what: 'Uncertainty of the network', run: (session) => session.toggleMap('uncertainty') },
  { keys: 'a', what: 'Axes: the longest diameter and the one across it', run: (session) => session.toggleAxes() },
  { keys: '1 to 9', what: 'Choose a finding', run: () => undefined },
  {
    keys: 'Delete',
    what: 'Clear the finding',
    run: (session) => {
      if (session.active !== null) {
        session.clear(session.active);
      }
    },
  },
  { keys: 'Ctrl+z', what: 'Undo', run: (session) => session.undo() },
  { keys: 'Ctrl+y', what: 'Redo', run: (session) => session.redo() },
  { keys: 'Ctrl+Shift+z', what: 'Redo', run: (session) => session.redo() },
  { keys: 'Ctrl+s', what: 'Save', anywhere: true, run: (session) => void session.save() },
  { keys: 'Ctrl+Shift+s', what: 'Save as new', anywhere: true, run: (session) => void session.save(true) },
  { keys: '.', what: 'Next sample', run: panel('next-sample') },
  { keys: '?', what: 'Show these keys', run: panel('toggle-keys') },
];

function resize(session: Session, factor: number): void {
  session.brush = Math.min(200, Math.max(1, Math.round(session.brush * factor * 2) / 2));
  session.changed();
}

export function keysOf(event: KeyboardEvent): string {
  const held = event.ctrlKey || event.metaKey;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key === 'Backspace' ? 'Delete' : event.key;
  return `${held ? 'Ctrl+' : ''}${held && event.shiftKey ? 'Shift+' : ''}${key}`;
}

function isTyping(event: KeyboardEvent): boolean {
  const [target] = event.composedPath();
  return (
    (target instanceof HTMLInputElement && !['checkbox', 'radio', 'range', 'button'].includes(target.type)) ||
    target instanceof HTMLTextAreaElement ||
    target instanceof HTMLSelectElement ||
    (target instanceof HTMLElement && target.isContentEditable)
  );
}

export class Shortcuts {
  constructor(private readonly session: Session) {}

  private readonly listener = (event: KeyboardEvent): void => {
    if (event.altKey || event.isComposing) {
      return;
    }
    const keys = keysOf(event);
    const typing = isTyping(event);
    const found = SHORTCUTS.find((each) => each.keys === keys && (!typing || each.anywhere));
    const [target] = event.composedPath();
    if (keys === 'Escape' && target instanceof HTMLInputElement) {
      return;
    }
    if (found) {
      found.run(this.session, event);
    } else if (!typing && /^[1-9]$/.test(keys)) {
      const finding = this.session.findings[Number(keys) - 1];
      if (finding) {
        this.session.select(finding.id);
      }
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };

  start(): void {
    // before the viewer's own keys, some of which are the same
    document.addEventListener('keydown', this.listener, { capture: true });
  }

  stop(): void {
    document.removeEventListener('keydown', this.listener, { capture: true });
  }
}
