/** The panel's looks, in OHIF's dark colours. */
import { css } from 'lit';

export const STYLE = css`
  :host {
    display: block;
    height: 100%;
    overflow-y: auto;
    background: #050615;
    color: #e8ecf8;
    font: 13px/1.4 Inter, system-ui, sans-serif;
  }
  * {
    box-sizing: border-box;
  }
  .panel {
    display: flex;
    flex-direction: column;
    gap: 8px;
    padding: 8px 10px 0;
  }
  header {
    display: grid;
    grid-template-columns: 1fr auto;
    gap: 2px 8px;
  }
  h2,
  h3,
  p {
    margin: 0;
  }
  h2 {
    font-size: 14px;
    font-weight: 600;
    overflow-wrap: anywhere;
  }
  h3 {
    font-size: 13px;
    font-weight: 600;
  }
  .image p,
  .hint,
  .state,
  .kept,
  .recent span,
  .review span {
    color: #a9b4d0;
    font-size: 12px;
  }
  .state {
    grid-column: 1 / -1;
  }
  button,
  input {
    font: inherit;
    color: inherit;
  }
  button {
    padding: 3px 8px;
    border: 1px solid #3a4570;
    border-radius: 4px;
    background: #141a35;
    cursor: pointer;
  }
  button:hover:not(:disabled) {
    background: #232c55;
  }
  button:disabled {
    opacity: 0.5;
    cursor: default;
  }
  button.main {
    background: #2357c5;
    border-color: #2357c5;
    color: #fff;
  }
  button.on,
  button.on:hover:not(:disabled) {
    background: #b9d2ff;
    border-color: #b9d2ff;
    color: #071033;
  }
  button.quiet {
    border: 0;
    background: none;
    align-self: start;
  }
  :focus-visible {
    outline: 2px solid #7fb0ff;
    outline-offset: 1px;
  }
  .row {
    display: flex;
    gap: 6px;
    align-items: center;
  }
  .title {
    justify-content: space-between;
  }
  .ask {
    position: relative;
    display: flex;
    flex-direction: column;
    gap: 6px;
  }
  .choice {
    display: flex;
    gap: 12px;
  }
  .choice label {
    display: flex;
    gap: 4px;
    align-items: center;
  }
  #text {
    flex: 1;
    min-width: 0;
    padding: 6px 8px;
    font-size: 14px;
    background: #0f1530;
    border: 1px solid #4a5a94;
    border-radius: 4px;
  }
  #text::placeholder {
    color: #98a4c4;
  }
  #run {
    padding: 6px 12px;
  }
  .field {
    position: relative;
  }
  #suggestions {
    position: absolute;
    z-index: 1;
    top: 100%;
    right: 0;
    left: 0;
    margin: 1px 0 0;
    padding: 2px 0;
    list-style: none;
    background: #0f1530;
    border: 1px solid #4a5a94;
    border-radius: 4px;
  }
  #suggestions li {
    padding: 3px 8px;
    cursor: pointer;
  }
  #suggestions li.on,
  #suggestions li:hover {
    background: #2a3b78;
  }
  #suggestions span {
    color: #a9b4d0;
  }
  .recent {
    display: flex;
    flex-wrap: wrap;
    gap: 4px 6px;
    align-items: baseline;
  }
  .chip {
    max-width: 100%;
    padding: 1px 8px;
    border-radius: 10px;
    font-size: 12px;
    overflow: hidden;
    text-overflow: ellipsis;
    white-space: nowrap;
  }
  .message {
    display: flex;
    justify-content: space-between;
    gap: 8px;
    padding: 6px 8px;
    background: #12244a;
    border-left: 3px solid #5b8def;
    border-radius: 3px;
    overflow-wrap: anywhere;
  }
  .message.bad {
    background: #3a1420;
    border-color: #ff7b89;
  }
  .conflict {
    display: flex;
    flex-wrap: wrap;
    gap: 6px;
    padding: 8px;
    background: #3a2c0a;
    border-left: 3px solid #f0b429;
    border-radius: 3px;
  }
  .conflict p {
    flex-basis: 100%;
  }
  .now {
    /* what is below stays where it is while things come and go */
    min-height: 58px;
  }
  .work progress {
    display: block;
    appearance: none;
    width: 100%;
    height: 6px;
    margin: 3px 0;
    border: 0;
  }
  progress::-webkit-progress-bar {
    background: #2a3358;
    border-radius: 3px;
  }
  progress::-webkit-progress-value {
    background: #5b8def;
    border-radius: 3px;
  }
  progress::-moz-progress-bar {
    background: #5b8def;
  }
  .work .row {
    justify-content: space-between;
    color: #a9b4d0;
    font-size: 12px;
  }
  .tools,
  .looks,
  .review {
    display: flex;
    flex-wrap: wrap;
    gap: 4px;
    align-items: center;
  }
  .slider {
    display: flex;
    gap: 6px;
    align-items: center;
    font-size: 12px;
  }
  .slider input {
    width: 90px;
    accent-color: #5b8def;
  }
  .findings {
    display: flex;
    flex-direction: column;
    gap: 4px;
    margin: 0;
    padding: 0;
    list-style: none;
  }
  .readings {
    flex-basis: 100%;
  }
  .finding,
  .reading {
    padding: 5px 6px;
    background: #0d1230;
    border: 1px solid transparent;
    border-radius: 4px;
  }
  .finding.on {
    border-color: #7fb0ff;
    background: #16204a;
  }
  .finding .row button:not(.name),
  .reading .row button {
    padding: 1px 6px;
    font-size: 12px;
  }
  .swatch {
    flex: none;
    width: 12px;
    height: 12px;
    border-radius: 2px;
  }
  .name {
    flex: 1;
    min-width: 0;
    padding: 1px 4px;
    text-align: left;
    font-weight: 600;
    background: none;
    border: 1px solid transparent;
    overflow: hidden;
    text-overflow: ellipsis;
    white-space: nowrap;
  }
  input.name {
    border-color: #4a5a94;
    border-radius: 3px;
  }
  .facts {
    display: flex;
    gap: 8px;
    align-items: center;
    margin-top: 3px;
    padding-left: 18px;
    font-size: 12px;
  }
  .size {
    flex: 1;
  }
  .measured {
    padding-left: 18px;
    color: #c3cce4;
    font-size: 12px;
  }
  .about {
    flex: 1;
    font-size: 12px;
    color: #c3cce4;
  }
  select,
  .review a {
    color: #a9c8ff;
  }
  select {
    padding: 4px;
    background: #0f1530;
    border: 1px solid #4a5a94;
    border-radius: 4px;
  }
  .review label {
    flex-basis: 100%;
    font-size: 12px;
  }
  .review span,
  .review a {
    font-size: 12px;
  }
  .size.none,
  .why {
    color: #f5c878;
  }
  .why {
    padding-left: 18px;
    font-size: 12px;
  }
  .presence {
    position: relative;
    width: 70px;
    height: 7px;
    background: #2a3358;
    border-radius: 3px;
  }
  .bar {
    position: absolute;
    inset: 0 auto 0 0;
    background: #d98324;
    border-radius: 3px;
  }
  .bar.enough {
    background: #35b37e;
  }
  .tick {
    position: absolute;
    top: -3px;
    width: 2px;
    height: 13px;
    background: #fff;
  }
  .figure {
    width: 28px;
    text-align: right;
  }
  footer {
    /* to save is always at hand, however many findings there are */
    position: sticky;
    bottom: 0;
    padding-bottom: 8px;
    background: #050615;
    display: flex;
    flex-direction: column;
    gap: 6px;
    padding-top: 6px;
    border-top: 1px solid #26305a;
  }
  .review form {
    display: flex;
    flex: 1 0 100%;
    gap: 4px;
  }
  .review input {
    flex: 1;
    padding: 3px 6px;
    background: #0f1530;
    border: 1px solid #4a5a94;
    border-radius: 4px;
  }
  .keys {
    padding: 8px;
    background: #0d1230;
    border-radius: 4px;
  }
  .keys dl {
    display: grid;
    grid-template-columns: auto 1fr;
    gap: 3px 10px;
    margin: 6px 0 0;
  }
  .keys dd {
    margin: 0;
  }
  kbd {
    padding: 0 5px;
    background: #232c55;
    border-radius: 3px;
    font: 12px ui-monospace, monospace;
  }
`;
