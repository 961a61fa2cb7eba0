/**
 * The part of the panel in which a reviewer makes one label of those of several readers.
 */
import { html, nothing, type TemplateResult } from 'lit';
import { css } from './colours';
import { agreementInWords, structuresInWords, type Reading } from './readers';
import type { Session } from './session';

export function adjudicationPart(session: Session): TemplateResult | typeof nothing {
  const { adjudication } = session;
  if (!adjudication) {
    return nothing;
  }
  const parts = structuresInWords(adjudication);
  return html`
    <section class="conflict" id="adjudication" aria-label="Labels of several readers">
      <p>
        <strong>${agreementInWords(adjudication)}</strong>${parts.length > 1 ? html` (${parts.join(', ')})` : nothing}
      </p>
      <ul class="findings readings" aria-label="Readers">
        ${adjudication.readings.map((reading) => row(session, reading))}
      </ul>
      <div class="row">
        <button
          id="take-staple"
          title="One label of all, each reader weighed by how well he or she agrees with the others"
          @click=${() => void session.adjudicate({ method: 'staple' })}
        >
          STAPLE
        </button>
        <span class="hint">or edit a label, and save it as the consensus</span>
      </div>
    </section>
  `;
}

function row(session: Session, { reader, shown, colour, visible, masks }: Reading): TemplateResult {
  const marked = masks.filter((mask) => mask.planes.size).map((mask) => mask.name);
  return html`
    <li class="reading" data-reader=${shown}>
      <div class="row">
        <span class="swatch" style="background: ${css(colour)}"></span>
        <span class="name">${shown}</span>
        <button
          aria-label="${visible ? 'Hide' : 'Show'} the label of ${shown}"
          @click=${() => session.showReading(reader, !visible)}
        >
          ${visible ? 'Hide' : 'Show'}
        </button>
        <button
          title="Begin the consensus with a copy of this label"
          aria-label="Edit a copy of the label of ${shown}"
          @click=${() => session.copyReading(reader)}
        >
          Edit
        </button>
        <button
          title="Make this reader's label the consensus"
          @click=${() => void session.adjudicate({ method: 'reader', reader })}
        >
          Take ${shown}
        </button>
      </div>
      <p class="facts">${marked.join(', ') || 'marked nothing'}</p>
    </li>
  `;
}
