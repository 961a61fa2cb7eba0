/**
 * The panel at the viewer's right side, a web component.
 */
import { html, LitElement, nothing, type TemplateResult } from 'lit';
import type { ImageInfo, MapKind, Network, Suggestion } from './api';
import { adjudicationPart } from './adjudication';
import { css } from './colours';
import type { Finding } from './findings';
import { inWords, measuredAtLength, measuredInWords, sizeOf, type Size } from './measure';
import { ADJUDICATION, called, type Model, type Session, type Tool } from './session';
import { SHORTCUTS } from './shortcuts';
import { STYLE } from './style';

export const PANEL_TAG = 'medclipsam-panel';

const SUGGEST_DELAY = 120;
const TOOLS: readonly { tool: Tool; label: string; title: string }[] = [
  { tool: 'navigate', label: 'Look', title: 'Look: window, zoom and scroll (Esc)' },
  { tool: 'positive', label: '+ Click', title: 'Click what belongs to the finding (P)' },
  { tool: 'negative', label: '− Click', title: 'Click what does not belong to the finding (N)' },
  { tool: 'box', label: 'Box', title: 'Draw a box around the finding (O)' },
  { tool: 'scribble', label: 'Scribble', title: 'Scribble in the finding; with Alt outside of it (S)' },
  { tool: 'brush', label: 'Brush', title: 'Paint the finding (B)' },
  { tool: 'eraser', label: 'Eraser', title: 'Erase from the finding (E)' },
];

/** Return the part of a text that is typed now: what follows the last semicolon. */
export const lastTarget = (text: string): string => text.slice(text.lastIndexOf(';') + 1).trimStart();

/** Put a suggestion in the place of the target that is typed now. */
export function completed(text: string, suggestion: string): string {
  const before = text.slice(0, text.lastIndexOf(';') + 1);
  return before ? `${before} ${suggestion}` : suggestion;
}

/** Return an image's name; one that is a DICOM UID says nothing to people. */
const title = ({ name, modality }: ImageInfo): string => (/^[\d.]{20,}$/.test(name) ? `${modality ?? 'An'} image` : name);
/** Return who it was; without log-in the server knows a browser's number alone, which says nothing to people. */
const person = (by: string | undefined): string => (!by || by.startsWith('browser-') ? 'Somebody else' : by);
/** Return what has made a finding, and whether somebody has changed it since. */
function madeBy({ source, edited, evidence, planes }: Finding): string {
  const unsure = evidence?.uncertaintyScore;
  const by = {
    text: 'by text',
    network: [
      `by ${evidence?.network ?? 'a network'}`,
      typeof unsure === 'number' && planes.size ? `uncertainty ${unsure.toFixed(2)}` : '',
    ],
    clicks: 'by clicks',
    hand: planes.size ? 'by hand' : '',
  }[source];
  return [by, edited && source !== 'hand' && source !== 'clicks' ? 'corrected' : ''].flat().filter(Boolean).join(', ');
}

function aboutNetwork(network: Network): string {
  const { labels, metrics, modality, status, reason } = network;
  const name = called(network);
  const finds = `${name[0]?.toUpperCase() ?? ''}${name.slice(1)} finds ${Object.keys(labels).join(', ')}`;
  const { child, n } = metrics.verdict ?? { n: 0 };
  const score = typeof child === 'number' ? `; Dice ${child.toFixed(2)} on ${plural(n, 'validation image')}` : '';
  const doubt = status === 'unvalidated' ? ` It has not been validated: ${reason}` : '';
  return `${finds}${modality ? ` in ${modality}` : ''}${score}.${doubt}`;
}

const plural = (count: number, what: string): string => `${count} ${what}${count === 1 ? '' : 's'}`;

class Panel extends LitElement {
  static session: Session;
  static override styles = STYLE;

  private readonly session = Panel.session;
  private text = this.session.lastText;
  private suggestions: Suggestion[] = [];
  private chosen = -1;
  private showKeys = false;
  private rejecting = false;
  private leaving = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private readonly sizes = new WeakMap<Finding['planes'], Size>();
  private readonly listeners = new AbortController();

  override connectedCallback(): void {
    super.connectedCallback();
    const { signal } = this.listeners;
    const { session } = this;
    session.addEventListener('change', () => this.requestUpdate(), { signal });
    session.addEventListener('focus-text', () => this.focusText(), { signal });
    session.addEventListener('next-sample', () => void this.next(), { signal });
    session.addEventListener(
      'toggle-keys',
      () => {
        this.showKeys = !this.showKeys;
        this.requestUpdate();
      },
      { signal },
    );
    // the viewer would take them as its own keys
    for (const type of ['keydown', 'keyup', 'keypress'] as const) {
      this.addEventListener(type, (event) => event.stopPropagation(), { signal });
    }
    window.addEventListener(
      'beforeunload',
      (event) => {
        if (session.draftState === 'waiting' || session.draftState === 'keeping' || session.draftState === 'failed') {
          void session.flush();
          event.preventDefault();
        }
      },
      { signal },
    );
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.listeners.abort();
  }

  protected override firstUpdated(): void {
    this.focusText();
  }

  private get input(): HTMLInputElement | null {
    return this.renderRoot.querySelector<HTMLInputElement>('#text');
  }

  private focusText(): void {
    if (this.session.model === 'network') {
      this.choose('text');
      return;
    }
    this.input?.focus();
    this.input?.select();
  }

  /** Choose what makes the mask, and go where it is started. */
  private choose(model: Model): void {
    this.session.model = model;
    this.session.changed();
    void this.updateComplete.then(() => {
      if (model === 'text') {
        this.focusText();
      } else {
        this.renderRoot.querySelector<HTMLButtonElement>('#run')?.focus();
      }
    });
  }

  private typed(event: Event): void {
    this.text = (event.target as HTMLInputElement).value;
    this.chosen = -1;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.suggest(), SUGGEST_DELAY);
    this.requestUpdate();
  }

  private async suggest(): Promise<void> {
    const typed = lastTarget(this.text);
    if (!typed) {
      this.suggestions = [];
    } else {
      try {
        const modality = this.session.image?.modality ?? '';
        const found = await this.session.api.suggestions(typed, modality);
        // what came meanwhile is newer
        if (lastTarget(this.text) !== typed || this.renderRoot.querySelector(':focus')?.id !== 'text') {
          return;
        }
        this.suggestions = found.filter((each) => each.name !== typed);
      } catch (error) {
        this.suggestions = [];
        this.session.fail(error);
      }
    }
    this.requestUpdate();
  }

  private pick(suggestion: Suggestion): void {
    this.text = completed(this.text, suggestion.name);
    this.closeSuggestions();
    this.input?.focus();
  }

  private closeSuggestions(): void {
    clearTimeout(this.timer);
    this.suggestions = [];
    this.chosen = -1;
    this.requestUpdate();
  }

  private keyed(event: KeyboardEvent): void {
    const count = this.suggestions.length;
    if (event.key === 'ArrowDown' && count) {
      this.chosen = (this.chosen + 1) % count;
    } else if (event.key === 'ArrowUp' && count) {
      this.chosen = (this.chosen + count) % (count + 1) === count ? -1 : (this.chosen + count) % (count + 1);
    } else if (event.key === 'Tab' && count && !event.shiftKey) {
      const picked = this.suggestions[Math.max(0, this.chosen)];
      if (picked) {
        this.pick(picked);
      }
    } else if (event.key === 'Enter') {
      const picked = this.suggestions[this.chosen];
      if (picked) {
        this.pick(picked);
      } else {
        this.run();
      }
    } else if (event.key === 'Escape') {
      if (count) {
        this.closeSuggestions();
      } else if (this.session.work) {
        void this.session.cancel();
      } else {
        this.input?.blur();
      }
    } else {
      return;
    }
    event.preventDefault();
    this.requestUpdate();
  }

  private run(text = this.text): void {
    this.text = text;
    this.closeSuggestions();
    void this.session.run(text);
  }

  private async next(sure = false, strategy?: string): Promise<void> {
    const { session } = this;
    if (session.unsaved && !sure) {
      this.leaving = true;
      this.requestUpdate();
      return;
    }
    this.leaving = false;
    await session.goNext(strategy);
  }

  /** Return a finding's size in words: of a loop, whose frames show one thing, that on the frame that is shown. */
  private sizeInWords(finding: Finding): string {
    const { image, plane, isVolume } = this.session;
    const count = image?.planes.length ?? 1;
    const whole = this.sizeOf(finding);
    if (!image || isVolume || count === 1 || !whole.pixels) {
      return inWords(whole, isVolume);
    }
    const here = finding.planes.get(plane ?? -1);
    const size = here ? inWords(sizeOf(new Map([[0, here]]), image), false) : 'none on this frame';
    return `${size}; on ${whole.planes} of ${count} frames`;
  }

  private sizeOf(finding: Finding): Size {
    let size = this.sizes.get(finding.planes);
    const { image } = this.session;
    if (!size && image) {
      size = sizeOf(finding.planes, image);
      this.sizes.set(finding.planes, size);
    }
    return size ?? { pixels: 0, planes: 0, volume_ml: null, area_mm2: null };
  }

  protected override render(): TemplateResult {
    const { session } = this;
    return html`
      <section class="panel" aria-label="Annotate by text" aria-busy=${session.opening ? 'true' : 'false'}>
        ${this.head()} ${this.showKeys ? this.keys() : nothing} ${this.ask()}
        <div class="now">
          <div class="messages" role="status" aria-live="polite">${session.work ? nothing : this.messages()}</div>
          ${session.work ? this.progress() : nothing}
        </div>
        ${this.conflict()} ${adjudicationPart(session)} ${this.tools()} ${this.list()} ${this.looks()}
        ${this.foot()}
      </section>
    `;
  }

  private head(): TemplateResult {
    const { image, state, savedBy } = this.session;
    const count = image?.planes.length ?? 1;
    const planes = count > 1 ? `${count} ${this.session.isVolume ? 'planes' : 'frames'}` : '';
    const until = image?.lease?.until;
    const lease = until ? `kept for you until ${new Date(until).toLocaleTimeString()}` : '';
    const about = [image?.modality, planes, lease, savedBy === null ? '' : 'labelled'];
    return html`
      <header>
        <div class="image">
          <h2>${image ? title(image) : 'No image'}</h2>
          <p>${image ? about.filter(Boolean).join(' · ') : 'Open a series at the left.'}</p>
        </div>
        <button
          class="quiet"
          title="Keys (?)"
          aria-label="Keys"
          aria-expanded=${this.showKeys ? 'true' : 'false'}
          @click=${() => this.session.dispatchEvent(new Event('toggle-keys'))}
        >
          ?
        </button>
        ${state?.sentence ? html`<p class="state" title="Rounds and training">${state.sentence}</p>` : nothing}
      </header>
    `;
  }

  private ask(): TemplateResult {
    const { session } = this;
    const byText = session.model === 'text';
    const recent = session.recent.filter((each) => each !== this.text).slice(0, 4);
    return html`
      <div class="ask">
        <div class="choice" role="radiogroup" aria-label="What makes the mask">
          ${(['text', 'network'] as const).map(
            (model) => html`
              <label class=${session.model === model ? 'on' : ''}>
                <input
                  type="radio"
                  name="model"
                  .checked=${session.model === model}
                  ?disabled=${model === 'network' && !session.hasNetwork}
                  @change=${() => this.choose(model)}
                />
                ${model === 'text' ? 'By text' : 'By the trained network'}
              </label>
            `,
          )}
        </div>
        ${!session.hasNetwork && session.info
          ? html`<p class="hint">No network has been trained on these studies yet.</p>`
          : nothing}
        ${byText ? this.field() : this.network()}
        ${byText && recent.length
          ? html`<div class="recent">
              <span>Recent</span>
              ${recent.map(
                (each) =>
                  html`<button class="chip" title="Run: ${each}" @click=${() => this.run(each)}>${each}</button>`,
              )}
            </div>`
          : nothing}
      </div>
    `;
  }

  private network(): TemplateResult {
    const { session } = this;
    const { chosenNetwork: network, networkNames: names } = session;
    return html`
      <div class="row field">
        ${names.length > 1
          ? html`<select
              id="network"
              aria-label="Network"
              @change=${(event: Event) => {
                session.network = (event.target as HTMLSelectElement).value;
                session.changed();
              }}
            >
              ${names.map((name) => html`<option value=${name} ?selected=${name === session.network}>${name}</option>`)}
            </select>`
          : nothing}
        <p class="about">${network ? aboutNetwork(network) : nothing}</p>
        <button class="main" id="run" ?disabled=${!session.image || session.work !== null} @click=${() => this.run()}>
          Run
        </button>
      </div>
    `;
  }

  private field(): TemplateResult {
    const { session } = this;
    const open = this.suggestions.length > 0;
    return html`
        <div class="row field">
          <input
            id="text"
            type="text"
            role="combobox"
            aria-label="What to look for"
            aria-autocomplete="list"
            aria-expanded=${open ? 'true' : 'false'}
            aria-controls="suggestions"
            aria-activedescendant=${this.chosen >= 0 ? `suggestion-${this.chosen}` : nothing}
            placeholder="What to look for: left lung; heart"
            autocomplete="off"
            spellcheck="false"
            maxlength="1000"
            .value=${this.text}
            @input=${(event: Event) => this.typed(event)}
            @keydown=${(event: KeyboardEvent) => this.keyed(event)}
            @blur=${() => setTimeout(() => this.closeSuggestions(), 150)}
          />
          <button class="main" id="run" ?disabled=${!session.image || session.work !== null} @click=${() => this.run()}>
            Find
          </button>
          <ul id="suggestions" role="listbox" aria-label="Known targets" ?hidden=${!open}>
            ${this.suggestions.map(
              (each, k) => html`
                <li
                  id="suggestion-${k}"
                  role="option"
                  aria-selected=${k === this.chosen ? 'true' : 'false'}
                  class=${k === this.chosen ? 'on' : ''}
                  @mousedown=${(event: Event) => {
                    event.preventDefault();
                    this.pick(each);
                  }}
                >
                  ${each.name}${each.text !== each.name ? html` <span>${each.text}</span>` : nothing}
                </li>
              `,
            )}
          </ul>
        </div>
    `;
  }

  private messages(): TemplateResult | typeof nothing {
    const { down, error, note } = this.session;
    const close = (): void => {
      this.session.error = this.session.note = null;
      this.session.changed();
    };
    const shut = html`<button class="quiet" aria-label="Dismiss" @click=${close}>×</button>`;
    if (down) {
      return html`<p class="message bad">${down} Your masks stay here; the panel asks again every few seconds.</p>`;
    }
    if (error) {
      return html`<p class="message bad">${error}${shut}</p>`;
    }
    return note ? html`<p class="message">${note}${shut}</p>` : nothing;
  }

  private progress(): TemplateResult {
    const { work } = this.session;
    const left = work?.secondsLeft;
    const seconds = left === null || left === undefined ? '' : `about ${plural(Math.max(1, Math.ceil(left)), 'second')} left`;
    const fraction = work?.fraction;
    return html`
      <div class="work">
        <p>${work?.what}</p>
        <progress
          aria-label="Progress"
          max="1"
          .value=${fraction ?? 0}
          class=${fraction === null || fraction === undefined ? 'unknown' : ''}
        ></progress>
        <div class="row">
          <span>${[work?.message, seconds].filter(Boolean).join(' · ')}</span>
          <button ?disabled=${work?.cancelled ?? true} @click=${() => void this.session.cancel()}>Cancel (Esc)</button>
        </div>
      </div>
    `;
  }

  private conflict(): TemplateResult | typeof nothing {
    const { theirs, otherDraft, asksEmpty } = this.session;
    if (theirs) {
      const { by, at } = theirs.saved;
      const when = at ? ` at ${new Date(at).toLocaleTimeString()}` : '';
      return html`
        <div class="conflict" role="alert">
          <p>
            ${person(by)} saved a label of this image${when} while you worked. Theirs has
            ${theirs.findings.map((each) => each.name).join(', ') || 'no finding'}; its outlines are drawn in pink.
          </p>
          <button @click=${() => void this.session.settle('mine')}>Replace with mine</button>
          <button @click=${() => void this.session.settle('theirs')}>Go on with theirs</button>
          <button @click=${() => void this.session.settle('both')}>Save mine as new</button>
        </div>
      `;
    }
    if (asksEmpty) {
      return html`
        <div class="conflict" role="alert">
          <p>Nothing is drawn. Save that this image has none of the findings?</p>
          <button @click=${() => void this.session.save(asksEmpty.asNew, true)}>Save as empty</button>
          <button
            @click=${() => {
              this.session.asksEmpty = null;
              this.session.changed();
            }}
          >
            Back
          </button>
        </div>
      `;
    }
    if (otherDraft) {
      return html`
        <div class="conflict" role="alert">
          <p>You changed this image in another window too.</p>
          <button @click=${() => void this.session.settleDraft('mine')}>Keep this window's</button>
          <button @click=${() => void this.session.settleDraft('theirs')}>Take the other's</button>
        </div>
      `;
    }
    return nothing;
  }

  private tools(): TemplateResult {
    const { session } = this;
    const painting = session.tool === 'brush' || session.tool === 'eraser';
    const { undoable, redoable } = session.history;
    return html`
      <div class="tools" role="toolbar" aria-label="Tools">
        ${TOOLS.map(
          ({ tool, label, title }) => html`
            <button
              title=${title}
              data-tool=${tool}
              class=${session.tool === tool ? 'on' : ''}
              aria-pressed=${session.tool === tool ? 'true' : 'false'}
              ?disabled=${!session.image}
              @click=${() => session.setTool(tool)}
            >
              ${label}
            </button>
          `,
        )}
        <button id="undo" title="Undo ${undoable ?? ''} (Ctrl+Z)" ?disabled=${undoable === undefined} @click=${() => session.undo()}>
          Undo
        </button>
        <button id="redo" title="Redo ${redoable ?? ''} (Ctrl+Y)" ?disabled=${redoable === undefined} @click=${() => session.redo()}>
          Redo
        </button>
        ${session.canPropagate
          ? html`<button
              id="propagate"
              title="Carry the chosen finding from here through all planes (G)"
              ?disabled=${!session.activeFinding?.planes.size || session.work !== null}
              @click=${() => void session.refine({}, true)}
            >
              Propagate
            </button>`
          : nothing}
        ${painting
          ? html`<label class="slider"
              >Size
              <input
                type="range"
                min="1"
                max="60"
                step="0.5"
                .value=${String(session.brush)}
                @input=${(event: Event) => {
                  session.brush = Number((event.target as HTMLInputElement).value);
                  session.changed();
                }}
              />
              ${session.brush} pixels</label
            >`
          : nothing}
      </div>
    `;
  }

  private list(): TemplateResult {
    const { session } = this;
    const findings = session.drawn;
    return html`
      <div class="row title">
        <h3>Findings</h3>
        <button
          id="new"
          title="A finding to draw by hand"
          ?disabled=${!session.image}
          @click=${() => {
            session.begin();
            session.setTool('brush');
          }}
        >
          New
        </button>
      </div>
      ${findings.length ? nothing : html`<p class="hint">None yet. Type a text and press Enter, or draw one by hand.</p>`}
      <ul class="findings" aria-label="Findings">
        ${findings.map((finding, k) => this.row(finding, k))}
      </ul>
    `;
  }

  private row(finding: Finding, number: number): TemplateResult {
    const { session } = this;
    const { evidence } = finding;
    const active = finding.id === session.active;
    const size = [this.sizeInWords(finding), madeBy(finding)].filter(Boolean).join(', ');
    const presence = evidence?.presence;
    const empty = !finding.planes.size;
    return html`
      <li class="finding ${active ? 'on' : ''}" data-name=${finding.name}>
        <div class="row" @click=${() => session.select(finding.id)}>
          <span class="swatch" style="background: ${css(finding.colour)}"></span>
          ${active
            ? html`<input
                class="name"
                aria-label="Name of the finding"
                .value=${finding.name}
                @change=${(event: Event) => session.rename(finding.id, (event.target as HTMLInputElement).value)}
                @keydown=${(event: KeyboardEvent) => {
                  if (event.key === 'Enter' || event.key === 'Escape') {
                    (event.target as HTMLInputElement).blur();
                  }
                }}
              />`
            : html`<button class="name" title="Choose (${number + 1})">${finding.name}</button>`}
          <button
            title=${finding.visible ? 'Hide' : 'Show'}
            aria-label="${finding.visible ? 'Hide' : 'Show'} ${finding.name}"
            @click=${(event: Event) => {
              event.stopPropagation();
              session.setVisible(finding.id, !finding.visible);
            }}
          >
            ${finding.visible ? 'Hide' : 'Show'}
          </button>
          <button
            title="Edit with the brush"
            aria-label="Edit ${finding.name}"
            @click=${(event: Event) => {
              event.stopPropagation();
              session.select(finding.id);
              session.setTool('brush');
            }}
          >
            Edit
          </button>
          <button
            title="Clear; Undo brings it back"
            aria-label="Clear ${finding.name}"
            @click=${(event: Event) => {
              event.stopPropagation();
              session.clear(finding.id);
            }}
          >
            Clear
          </button>
        </div>
        <div class="facts">
          <span class="size ${empty ? 'none' : ''}">${size}</span>
          ${presence === null || presence === undefined ? nothing : this.presence(presence, evidence?.threshold ?? null)}
        </div>
        ${empty ? nothing : this.measured(finding)}
        ${empty && evidence?.reason ? html`<p class="why">${evidence.reason}</p>` : nothing}
        ${!empty && evidence?.doubt ? html`<p class="why">${evidence.doubt}</p>` : nothing}
      </li>
    `;
  }

  private measured(finding: Finding): TemplateResult {
    const { session } = this;
    const measured = session.measurementsOf(finding);
    if (measured) {
      return html`<p class="measured" title=${measuredAtLength(measured)}>${measuredInWords(measured)}</p>`;
    }
    return session.unmeasured
      ? html`<p class="measured" title=${session.unmeasured}>not measured</p>`
      : html`<p class="measured">measuring ...</p>`;
  }

  private presence(score: number, threshold: number | null): TemplateResult {
    const told = `Presence ${score.toFixed(2)}${threshold === null ? '' : `, threshold ${threshold.toFixed(2)}`}`;
    const enough = threshold === null || score >= threshold;
    return html`
      <span class="presence" role="img" aria-label=${told} title=${told}>
        <span class="bar ${enough ? 'enough' : ''}" style="width: ${Math.round(100 * score)}%"></span>
        ${threshold === null ? nothing : html`<span class="tick" style="left: ${Math.round(100 * threshold)}%"></span>`}
      </span>
      <span class="figure" aria-hidden="true">${score.toFixed(2)}</span>
    `;
  }

  private looks(): TemplateResult {
    const { session } = this;
    const { map, activeFinding } = session;
    const has = (kind: MapKind): boolean => Boolean(activeFinding?.evidence?.[kind]);
    return html`
      <div class="looks">
        <label class="slider"
          >Masks
          <input
            type="range"
            min="0"
            max="1"
            step="0.05"
            .value=${String(session.opacity)}
            @input=${(event: Event) => {
              session.opacity = Number((event.target as HTMLInputElement).value);
              session.changed();
            }}
          />
        </label>
        <button
          aria-pressed=${session.hidden ? 'true' : 'false'}
          title="Hide all masks (H)"
          @click=${() => {
            session.hidden = !session.hidden;
            session.changed();
          }}
        >
          ${session.hidden ? 'Show all' : 'Hide all'}
        </button>
        ${(['saliency', 'uncertainty'] as const).map(
          (kind) => html`
            <button
              data-map=${kind}
              class=${map?.kind === kind ? 'on' : ''}
              aria-pressed=${map?.kind === kind ? 'true' : 'false'}
              ?disabled=${!has(kind)}
              title=${kind === 'saliency' ? 'Where the text was found (M)' : 'Where the network is unsure (U)'}
              @click=${() => session.toggleMap(kind)}
            >
              ${kind === 'saliency' ? 'Saliency' : 'Uncertainty'}
            </button>
          `,
        )}
        <button
          id="axes"
          aria-pressed=${session.axes ? 'true' : 'false'}
          class=${session.axes ? 'on' : ''}
          ?disabled=${!activeFinding?.planes.size}
          title="Draw the longest diameter and the one across it (A)"
          @click=${() => session.toggleAxes()}
        >
          Axes
        </button>
        ${map
          ? html`<label class="slider"
              >Map
              <input
                type="range"
                min="0"
                max="1"
                step="0.05"
                .value=${String(map.opacity)}
                @input=${(event: Event) => {
                  session.map = { ...map, opacity: Number((event.target as HTMLInputElement).value) };
                  session.changed();
                }}
              />
            </label>`
          : nothing}
      </div>
    `;
  }

  private foot(): TemplateResult {
    const { session } = this;
    const { image } = session;
    return html`
      <footer>
        <p class="kept" data-state=${session.draftState}>${this.kept()}</p>
        <div class="row">
          <button class="main" id="save" title="Save (Ctrl+S)" ?disabled=${!image} @click=${() => void session.save()}>
            ${session.adjudication ? 'Save as the consensus' : 'Save'}
          </button>
          <button
            id="save-new"
            title="Save as new, beside the label before (Ctrl+Shift+S)"
            ?disabled=${!image || session.adjudication !== null}
            @click=${() => void session.save(true)}>
            Save as new
          </button>
          <button id="next" title="Next sample (.)" @click=${() => void this.next()}>Next sample</button>
          ${session.state?.to_adjudicate
            ? html`<button
                id="next-adjudication"
                title="The image whose readers agree least"
                @click=${() => void this.next(false, ADJUDICATION)}
              >
                Adjudicate (${session.state.to_adjudicate})
              </button>`
            : nothing}
        </div>
        ${this.report()} ${session.sampleReason ? html`<p class="hint">${session.sampleReason}</p>` : nothing}
        ${this.leaving
          ? html`<div class="conflict" role="alert">
              <p>This image has unsaved work; it is kept as a draft and comes back when you do.</p>
              <button
                @click=${() => {
                  void session.save().then(() => {
                    if (!session.unsaved) {
                      void this.next(true);
                    }
                  });
                }}
              >
                Save, then next
              </button>
              <button @click=${() => void this.next(true)}>Leave it as a draft</button>
              <button
                @click=${() => {
                  this.leaving = false;
                  this.requestUpdate();
                }}
              >
                Stay
              </button>
            </div>`
          : nothing}
        ${session.savedBy !== null || session.base ? this.reviewing() : nothing}
      </footer>
    `;
  }

  /** What becomes of the measurements of what is saved. */
  private report(): TemplateResult | typeof nothing {
    const { session } = this;
    const { image, base } = session;
    if (!image) {
      return nothing;
    }
    return html`
      <div class="review" id="measurements">
        ${image.reports === 'offered'
          ? html`<label>
              <input
                type="checkbox"
                id="report"
                .checked=${session.withReport}
                @change=${(event: Event) => {
                  session.withReport = (event.target as HTMLInputElement).checked;
                }}
              />
              Save the measurements to the PACS too (DICOM SR)
            </label>`
          : nothing}
        ${base
          ? html`<span>Measurements of the saved label:</span>
              <a href=${session.api.measurements(image.image, 'csv')} download>CSV</a>
              <a href=${session.api.measurements(image.image, 'json')} target="_blank" rel="noopener">JSON</a>`
          : nothing}
      </div>
    `;
  }

  private reviewing(): TemplateResult {
    const { session } = this;
    return html`
      <div class="review">
        <span>Review the saved label</span>
        <button id="accept" @click=${() => void session.review('approved')}>Accept</button>
        <button
          id="reject"
          aria-expanded=${this.rejecting ? 'true' : 'false'}
          @click=${() => {
            this.rejecting = !this.rejecting;
            this.requestUpdate();
          }}
        >
          Reject
        </button>
        ${this.rejecting
          ? html`<form
              @submit=${(event: Event) => {
                event.preventDefault();
                const reason = new FormData(event.target as HTMLFormElement).get('reason');
                this.rejecting = false;
                void session.review('rejected', typeof reason === 'string' ? reason.trim() : '');
              }}
            >
              <input name="reason" aria-label="Reason" placeholder="Reason" required maxlength="500" />
              <button>Send</button>
            </form>`
          : nothing}
      </div>
    `;
  }

  private kept(): string {
    const { session } = this;
    const at = session.keptAt?.toLocaleTimeString();
    switch (session.draftState) {
      case 'waiting':
      case 'keeping':
        return 'Keeping the draft ...';
      case 'kept':
        return `Draft kept on the server${at ? ` at ${at}` : ''}; not saved as a label yet.`;
      case 'failed':
        return 'The draft is not kept on the server yet.';
      default:
        return session.base ? 'Nothing to save.' : 'Nothing drawn yet.';
    }
  }

  private keys(): TemplateResult {
    return html`
      <section class="keys" aria-label="Keys">
        <h3>Keys</h3>
        <dl>
          ${SHORTCUTS.map((each) => html`<dt><kbd>${each.keys}</kbd></dt><dd>${each.what}</dd>`)}
          <dt><kbd>Enter</kbd></dt>
          <dd>In the text field: find</dd>
        </dl>
      </section>
    `;
  }
}

/** Register the component, once; all of them show the same session. */
export function definePanel(session: Session): void {
  Panel.session = session;
  if (!customElements.get(PANEL_TAG)) {
    customElements.define(PANEL_TAG, Panel);
  }
}
