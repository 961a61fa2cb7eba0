// src/api.ts
/** What the server refused or could not do, as its sentence. */
var ServerError = class extends Error {
	constructor(status, message, body = null) {
		super(message);
		this.status = status;
		this.body = body;
	}
};
/** No server answered. */
var UnreachableError = class extends Error {};
/** Split a stream of bytes into the JSON objects that its lines are. */
async function* lines(stream) {
	const reader = stream.getReader();
	const decoder = new TextDecoder();
	let rest = "";
	try {
		for (;;) {
			const { done, value } = await reader.read();
			rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
			const parts = rest.split("\n");
			rest = done ? "" : parts.pop() ?? "";
			for (const part of parts) if (part.trim()) yield JSON.parse(part);
			if (done) return;
		}
	} finally {
		reader.releaseLock();
	}
}
var quoted = encodeURIComponent;
var Api = class {
	/** @param root address of the server, with a slash at its end */
	constructor(root, fetched = (...given) => fetch(...given)) {
		this.root = root;
		this.fetched = fetched;
	}
	image(study, series, instance, frame) {
		const query = new URLSearchParams({
			StudyInstanceUID: study,
			SeriesInstanceUID: series,
			SOPInstanceUID: instance,
			frame: String(frame)
		});
		return this.json("GET", `viewer/api/image?${query.toString()}`);
	}
	async suggestions(text, modality) {
		const query = new URLSearchParams({
			q: text.slice(0, 100),
			limit: "8",
			modality
		});
		return (await this.json("GET", `targets/vocabulary?${query.toString()}`)).targets;
	}
	info() {
		return this.json("GET", "info/");
	}
	networks() {
		return this.json("GET", "networks/");
	}
	async measure(image, segments) {
		const path = `viewer/api/measurements/${quoted(image)}`;
		return (await this.json("POST", path, { segments })).measurements;
	}
	/** Return where the measurements of the saved label are, as a file. */
	measurements(image, format) {
		return `${this.root}viewer/api/measurements/${quoted(image)}?format=${format}`;
	}
	async storeReport(image) {
		await this.send("POST", `viewer/api/labels/${quoted(image)}/report`);
	}
	state() {
		return this.json("GET", "viewer/api/state");
	}
	/** Run a model; yields what the server says as it comes. */
	async *infer(model, image, params, request) {
		const query = new URLSearchParams({
			image,
			request_id: request
		});
		const answer = await this.send("POST", `infer/${quoted(model)}?${query.toString()}`, params, { Accept: "application/x-ndjson" });
		if (!answer.headers.get("content-type")?.startsWith("application/x-ndjson") || !answer.body) throw new ServerError(answer.status, "The server did not answer in lines; its version does not fit this viewer.");
		try {
			yield* lines(answer.body);
		} catch (error) {
			throw error instanceof TypeError ? this.unreachable() : error;
		}
	}
	async cancel(request) {
		await this.send("DELETE", `requests/${quoted(request)}`);
	}
	draft(image) {
		return this.optional(`viewer/api/drafts/${quoted(image)}`);
	}
	keepDraft(image, draft) {
		return this.json("PUT", `viewer/api/drafts/${quoted(image)}`, draft);
	}
	async dropDraft(image) {
		await this.send("DELETE", `viewer/api/drafts/${quoted(image)}`);
	}
	label(image) {
		return this.optional(`viewer/api/labels/${quoted(image)}`);
	}
	/** Return the mask of a model that waits for whoever labels an image; null where there is none. */
	proposal(image) {
		return this.optional(`viewer/api/proposals/${quoted(image)}`);
	}
	save(image, label) {
		return this.json("PUT", `viewer/api/labels/${quoted(image)}`, label);
	}
	/** Return the labels of an image that this reviewer may make the consensus of; null where there are none. */
	toAdjudicate(image) {
		return this.optional(`viewer/api/readers/${quoted(image)}`);
	}
	async adjudicate(image, consensus, seen) {
		await this.send("PUT", `readers/${quoted(image)}/consensus`, {
			...consensus,
			seen
		});
	}
	next(strategy) {
		return this.json("POST", `activelearning/${quoted(strategy)}`, {});
	}
	async review(image, verdict, reason) {
		const query = new URLSearchParams({
			image,
			verdict,
			...reason ? { reason } : {}
		});
		await this.send("PUT", `rounds/reviews?${query.toString()}`);
	}
	/** Return whether the server is ready. */
	async isUp() {
		try {
			return (await this.fetched(`${this.root}readyz`, { cache: "no-store" })).ok;
		} catch {
			return false;
		}
	}
	async optional(path) {
		const answer = await this.send("GET", path);
		return answer.status === 204 ? null : await answer.json();
	}
	async json(method, path, body) {
		return await (await this.send(method, path, body)).json();
	}
	async send(method, path, body, headers = {}) {
		let answer;
		try {
			answer = await this.fetched(this.root + path, {
				method,
				headers: {
					...headers,
					...body ? { "Content-Type": "application/json" } : {}
				},
				...body ? { body: JSON.stringify(body) } : {}
			});
		} catch {
			throw this.unreachable();
		}
		if (!answer.ok) {
			const told = await answer.json().catch(() => null);
			throw new ServerError(answer.status, sentence(told) ?? `The server answered ${answer.status}.`, told);
		}
		return answer;
	}
	unreachable() {
		return new UnreachableError(`The server ${new URL(this.root, location.href).origin} does not answer.`);
	}
};
function sentence(told) {
	const detail = told?.detail;
	return typeof detail === "string" ? detail : void 0;
}
// src/maps.ts
var MOST = 32;
/** Return the colour of a value from 0 to 1 in a black, purple, orange, yellow scale, after "inferno". */
function heat(value) {
	const stops = [
		[
			0,
			0,
			4
		],
		[
			87,
			16,
			110
		],
		[
			188,
			55,
			84
		],
		[
			249,
			142,
			9
		],
		[
			252,
			255,
			164
		]
	];
	const at = Math.min(Math.max(value, 0), .9999) * (stops.length - 1);
	const from = stops[Math.floor(at)] ?? stops[0];
	const to = stops[Math.floor(at) + 1] ?? from;
	const share = at - Math.floor(at);
	return [
		0,
		1,
		2
	].map((k) => Math.round((from[k] ?? 0) * (1 - share) + (to[k] ?? 0) * share));
}
var MapPictures = class extends EventTarget {
	constructor(..._args) {
		super(..._args);
		this.kept = /* @__PURE__ */ new Map();
	}
	/** Return the picture of the map that is chosen, on a plane; null until it is there. */
	get(session, plane) {
		const chosen = session.map;
		const finding = session.findings.find((each) => each.id === chosen?.finding);
		const address = chosen && finding?.evidence?.[chosen.kind];
		if (!address || finding.evidence.mapPlanes?.includes(plane) === false) return null;
		const url = new URL(address, new URL(session.api.root, location.href));
		url.searchParams.set("plane", String(plane));
		const found = this.kept.get(url.href);
		if (found instanceof HTMLCanvasElement) return found;
		if (!found) {
			this.kept.set(url.href, "loading");
			this.load(url.href, session);
		}
		return null;
	}
	async load(url, session) {
		try {
			const answer = await fetch(url);
			if (!answer.ok) throw new Error(answer.status === 404 ? "The map is no longer kept; run the text again." : `The map: ${answer.status}.`);
			this.kept.set(url, colour(await createImageBitmap(await answer.blob())));
			for (const old of [...this.kept.keys()].slice(0, Math.max(0, this.kept.size - MOST))) this.kept.delete(old);
		} catch (error) {
			this.kept.set(url, "failed");
			session.fail(error);
		}
		this.dispatchEvent(new Event("change"));
	}
};
function colour(grey) {
	const canvas = document.createElement("canvas");
	canvas.width = grey.width;
	canvas.height = grey.height;
	const context = canvas.getContext("2d", { willReadFrequently: true });
	if (context) {
		context.drawImage(grey, 0, 0);
		const picture = context.getImageData(0, 0, canvas.width, canvas.height);
		const table = Array.from({ length: 256 }, (_, value) => heat(value / 255));
		for (let k = 0; k < picture.data.length; k += 4) {
			const value = picture.data[k] ?? 0;
			picture.data.set([...table[value] ?? [
				0,
				0,
				0
			], value], k);
		}
		context.putImageData(picture, 0, 0);
	}
	grey.close();
	return canvas;
}
// src/colours.ts
var FIRST = [
	[
		230,
		159,
		0
	],
	[
		86,
		180,
		233
	],
	[
		0,
		190,
		130
	],
	[
		240,
		228,
		66
	],
	[
		213,
		94,
		0
	],
	[
		204,
		121,
		167
	],
	[
		80,
		120,
		255
	]
];
var GOLDEN_ANGLE = 137.508;
function fromHue(hue, lightness) {
	const channel = (offset) => {
		const at = (offset + hue / 30) % 12;
		const value = lightness - .8 * Math.min(lightness, 1 - lightness) * Math.max(-1, Math.min(at - 3, 9 - at, 1));
		return Math.round(255 * value);
	};
	return [
		channel(0),
		channel(8),
		channel(4)
	];
}
/** Return the first colour that none of the given ones is. */
function nextColour(used) {
	const taken = new Set([...used].map(String));
	for (let k = 0;; k++) {
		const colour = FIRST[k] ?? fromHue(k * GOLDEN_ANGLE % 360, k % 2 ? .72 : .55);
		if (!taken.has(String(colour)) || k > 500) return colour;
	}
}
var css = (colour, alpha = 1) => `rgb(${colour.join(" ")} / ${alpha})`;
var hex = (colour) => `#${colour.map((channel) => channel.toString(16).padStart(2, "0")).join("")}`;
/** Read a colour as the server keeps it, "#rrggbb"; undefined where it is none. */
function fromHex(text) {
	const found = typeof text === "string" ? /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(text) : null;
	return found ? [
		parseInt(found[1] ?? "", 16),
		parseInt(found[2] ?? "", 16),
		parseInt(found[3] ?? "", 16)
	] : void 0;
}
// src/ohif.ts
/** Sent by Cornerstone to a viewport's element after each drawing: a new image, another zoom, another window. */
var IMAGE_RENDERED = "CORNERSTONE_IMAGE_RENDERED";
// src/runs.ts
function toBitmap(runs, size) {
	const bitmap = new Uint8Array(size);
	for (let k = 0; k + 1 < runs.length; k += 2) {
		const start = runs[k] ?? 0;
		bitmap.fill(1, start, start + (runs[k + 1] ?? 0));
	}
	return bitmap;
}
function toRuns(bitmap) {
	const runs = [];
	let at = bitmap.indexOf(1);
	while (at >= 0) {
		let end = bitmap.indexOf(0, at);
		if (end < 0) end = bitmap.length;
		runs.push(at, end - at);
		at = bitmap.indexOf(1, end);
	}
	return runs;
}
/** Return the number of pixels. */
function area(runs) {
	let sum = 0;
	for (let k = 1; k < runs.length; k += 2) sum += runs[k] ?? 0;
	return sum;
}
/** Return whether runs are ascending, apart, and within a plane of `size` pixels. */
function fits(runs, size) {
	let end = -1;
	for (let k = 0; k < runs.length; k += 2) {
		const start = runs[k];
		const length = runs[k + 1];
		if (!Number.isInteger(start) || !Number.isInteger(length) || start === void 0 || length === void 0) return false;
		if (start <= end || length < 1) return false;
		end = start + length;
	}
	return end <= size;
}
/** Set the pixels of a disc around (x, y), which need not lie in the plane. */
function drawDisc(bitmap, columns, x, y, radius, value) {
	const rows = bitmap.length / columns;
	const first = Math.max(0, Math.ceil(y - radius));
	const last = Math.min(rows - 1, Math.floor(y + radius));
	for (let row = first; row <= last; row++) {
		const half = Math.sqrt(radius * radius - (row - y) * (row - y));
		const from = Math.max(0, Math.ceil(x - half));
		const to = Math.min(columns - 1, Math.floor(x + half));
		if (from <= to) bitmap.fill(value, row * columns + from, row * columns + to + 1);
	}
}
/** Draw a stroke of discs from one point to another. */
function drawStroke(bitmap, columns, from, to, radius, value) {
	const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(.5, radius / 2)));
	for (let step = 0; step <= steps; step++) {
		const share = step / steps;
		drawDisc(bitmap, columns, from[0] + share * (to[0] - from[0]), from[1] + share * (to[1] - from[1]), radius, value);
	}
}
// src/findings.ts
/**
* Findings of one image and the history of their changes. Findings are never changed, but replaced, so that a step back
* is the list as it was.
*/
var lastId = 0;
function planesOf(segment, size) {
	const planes = /* @__PURE__ */ new Map();
	for (const { plane, runs } of segment.planes) {
		if (!fits(runs, size)) throw new Error(`The mask of "${segment.name}" on plane ${plane} does not fit on the image.`);
		if (runs.length) planes.set(plane, runs);
	}
	return planes;
}
function makeFinding(findings, given) {
	lastId += 1;
	return {
		id: lastId,
		name: given.name,
		colour: given.colour ?? nextColour(findings.map((each) => each.colour)),
		source: given.source,
		edited: given.edited ?? false,
		visible: true,
		planes: given.planes,
		evidence: given.evidence ?? null
	};
}
var replace = (findings, id, change) => findings.map((each) => each.id === id ? {
	...each,
	...change
} : each);
function withPlane(finding, plane, runs) {
	const planes = new Map(finding.planes);
	if (runs.length) planes.set(plane, runs);
	else planes.delete(plane);
	return {
		...finding,
		planes
	};
}
/** Return a name that no finding has: "lungs", "lungs (2)" and so on. */
function freeName(findings, name) {
	const taken = new Set(findings.map((each) => each.name));
	let candidate = name;
	for (let k = 2; taken.has(candidate); k++) candidate = `${name} (${k})`;
	return candidate;
}
/**
* Put a model's answer for a target among the findings.
*
* It takes the place of the same target's earlier answer. What somebody has drawn or corrected stays: then the answer
* is a finding beside it. All others stay.
*/
function withAnswer(findings, given) {
	const before = findings.find((each) => each.name === given.name && !each.edited && each.source !== "hand");
	if (before) return {
		findings: replace(findings, before.id, {
			...given,
			visible: true
		}),
		id: before.id
	};
	const made = makeFinding(findings, {
		...given,
		name: freeName(findings, given.name)
	});
	return {
		findings: [...findings, made],
		id: made.id
	};
}
function toSegments(findings) {
	return findings.map((each) => ({
		name: each.name,
		colour: hex(each.colour),
		source: each.source,
		edited: each.edited,
		planes: [...each.planes].sort((a, b) => a[0] - b[0]).map(([plane, runs]) => ({
			plane,
			runs
		}))
	}));
}
/** Return findings as a draft has them: with what the server said of them. */
function toDraft(findings) {
	return toSegments(findings).map((segment, place) => {
		const evidence = findings[place]?.evidence;
		if (!evidence) return segment;
		const { presence, threshold, reason, doubt, network, uncertaintyScore } = evidence;
		return {
			...segment,
			evidence: {
				presence,
				threshold,
				reason,
				doubt,
				network,
				uncertainty: uncertaintyScore
			}
		};
	});
}
function fromSegments(segments, size) {
	let findings = [];
	for (const segment of segments) {
		const colour = fromHex(segment.colour);
		const made = makeFinding(findings, {
			name: segment.name,
			source: segment.source ?? "hand",
			edited: segment.edited ?? true,
			planes: planesOf(segment, size),
			evidence: segment.evidence ? fromKept(segment.evidence) : null,
			...colour ? { colour } : {}
		});
		findings = [...findings, made];
	}
	return findings;
}
function fromKept({ presence, threshold, reason, doubt, network, uncertainty }) {
	return {
		presence,
		threshold,
		reason,
		doubt,
		network: network ?? null,
		uncertaintyScore: uncertainty ?? null,
		mapPlanes: null,
		saliency: null,
		uncertainty: null
	};
}
/** Steps back and forth between lists of findings. */
var History = class {
	constructor(first = [], most = 51) {
		this.most = most;
		this.at = 0;
		this.states = [{
			findings: first,
			what: ""
		}];
	}
	get findings() {
		return this.states[this.at]?.findings ?? [];
	}
	/** What a step back takes back; undefined where there is none. */
	get undoable() {
		return this.at > 0 ? this.states[this.at]?.what : void 0;
	}
	get redoable() {
		return this.states[this.at + 1]?.what;
	}
	push(findings, what) {
		this.states.splice(this.at + 1);
		this.states.push({
			findings,
			what
		});
		if (this.states.length > this.most) this.states.shift();
		this.at = this.states.length - 1;
	}
	/** Change the present list without a step, as for what is shown. */
	amend(findings) {
		const present = this.states[this.at];
		if (present) present.findings = findings;
	}
	undo() {
		if (this.at === 0) return false;
		this.at -= 1;
		return true;
	}
	redo() {
		if (this.at + 1 >= this.states.length) return false;
		this.at += 1;
		return true;
	}
};
// src/readers.ts
/**
* Labels of several readers that a reviewer makes one of.
*/
/**
* @param size number of pixels of a plane
*/
function readingsOf(told, size) {
	const readings = [];
	for (const { reader, segments } of told.readers) readings.push({
		reader,
		shown: reader.startsWith("browser-") ? `reader ${readings.length + 1}` : reader,
		colour: nextColour(readings.map((each) => each.colour)),
		visible: true,
		masks: segments.map((segment) => ({
			name: segment.name,
			planes: planesOf(segment, size)
		})),
		segments
	});
	return {
		told,
		readings
	};
}
/** Return the versions that were looked at, by the reader. */
var seen = ({ told }) => Object.fromEntries(told.readers.map((each) => [each.reader, each.version]));
var withVisible = (adjudication, reader, visible) => ({
	...adjudication,
	readings: adjudication.readings.map((each) => each.reader === reader ? {
		...each,
		visible
	} : each)
});
var figure = (dice) => dice === null ? "no structure in common" : `Dice ${dice.toFixed(2)}`;
var COUNTS = [
	"No",
	"One",
	"Two",
	"Three",
	"Four",
	"Five"
];
/** Return how well the readers agree, as a sentence's beginning: "Two readers disagree: Dice 0.71". */
function agreementInWords({ told, readings }) {
	return `${COUNTS[readings.length] ?? String(readings.length)} readers ${told.dice === 1 ? "agree" : "disagree"}: ${figure(told.dice)}`;
}
/** Return the least agreement on each structure, the worst first: "heart 0.71". */
function structuresInWords({ told }) {
	return Object.entries(told.structures).map(([name, { pairs }]) => ({
		name,
		dice: Math.min(...pairs.map((pair) => pair.dice))
	})).sort((one, other) => one.dice - other.dice).map(({ name, dice }) => `${name} ${dice.toFixed(2)}`);
}
// src/session.ts
/**
* The image that is annotated: its findings, what runs for it, and what of it is kept on the server.
*/
/** Mark of the time at which the last answer of a model came. */
var ANSWERED = "medclipsam.answer";
var DRAFT_DELAY = 700;
var MEASURE_DELAY = 300;
var LOOK_AGAIN = 3e3;
/** Milliseconds between two looks at rounds and training. */
var STATE_EVERY = 5e3;
var RECENT_KEY = "medclipsam.recent";
var LAST_KEY = "medclipsam.last";
var REASON_KEY = "medclipsam.reason";
var REPORT_KEY = "medclipsam.report";
var MOST_RECENT = 8;
/** The strategy that offers what waits for a consensus. */
var ADJUDICATION = "adjudication";
/** What the server says why it offers an image, in words. */
var REASONS = {
	assigned: "Assigned to you.",
	"second read": "Two people read this image, each unaware of the other.",
	adjudication: "Its readers wait for a consensus; of those that wait they agree least."
};
var Session = class extends EventTarget {
	/** Whether an image is being opened, whose draft or label may still come. */
	get opening() {
		return this.loading !== null;
	}
	constructor(api, storage = sessionStorage) {
		super();
		this.api = api;
		this.storage = storage;
		this.steps = null;
		this.image = null;
		this.plane = null;
		this.history = new History();
		this.active = null;
		this.tool = "navigate";
		this.brush = 8;
		this.model = "text";
		this.opacity = .4;
		this.map = null;
		this.hidden = false;
		this.axes = false;
		this.work = null;
		this.error = null;
		this.note = null;
		this.down = null;
		this.theirs = null;
		this.adjudication = null;
		this.asksEmpty = null;
		this.otherDraft = null;
		this.draftState = "none";
		this.keptAt = null;
		this.base = null;
		this.savedBy = null;
		this.info = null;
		this.state = null;
		this.networks = {};
		this.network = null;
		this.unmeasured = null;
		this.measured = /* @__PURE__ */ new WeakMap();
		this.measuring = false;
		this.revision = null;
		this.chain = Promise.resolve();
		this.loading = null;
		this.preview = null;
		this.marks = [];
	}
	get findings() {
		return this.history.findings;
	}
	get activeFinding() {
		return this.findings.find((each) => each.id === this.active);
	}
	get size() {
		return this.image ? this.image.rows * this.image.columns : 0;
	}
	get isVolume() {
		const { planes, modality, spacing_mm: spacing } = this.image ?? {
			planes: [],
			modality: null,
			spacing_mm: null
		};
		const stacked = [
			"CT",
			"MR",
			"PT",
			"NM"
		].includes(modality ?? "") || Boolean(spacing?.[0]);
		return planes.length > 1 && stacked;
	}
	get hasNetwork() {
		return this.networkNames.length > 0;
	}
	/** Names of the networks that can be run. */
	get networkNames() {
		return Object.keys(this.networks).filter((name) => served(this.networks[name]));
	}
	/** The version that runs, and whether it could not be validated; null where there is none. */
	get chosenNetwork() {
		return served(this.networks[this.network ?? ""]) ?? null;
	}
	/** Whether measurements are stored in the PACS with a label that is saved. */
	get withReport() {
		return this.image?.reports === "offered" && this.storage.getItem(REPORT_KEY) === "yes";
	}
	set withReport(wanted) {
		this.storage.setItem(REPORT_KEY, wanted ? "yes" : "no");
		this.changed();
	}
	get canPropagate() {
		const refine = this.info?.models["refine"];
		return (this.image?.planes.length ?? 0) > 1 && refine?.config !== void 0 && "propagate" in refine.config;
	}
	get unsaved() {
		return this.draftState !== "none";
	}
	get recent() {
		try {
			const kept = JSON.parse(this.storage.getItem(RECENT_KEY) ?? "[]");
			return Array.isArray(kept) ? kept.filter((each) => typeof each === "string") : [];
		} catch {
			return [];
		}
	}
	get lastText() {
		return this.storage.getItem(LAST_KEY) ?? "";
	}
	changed() {
		this.dispatchEvent(new Event("change"));
	}
	/** Tell in place what went wrong. */
	fail(error) {
		if (error instanceof UnreachableError) this.wentDown(error.message);
		else this.error = error instanceof Error ? error.message : String(error);
		this.changed();
	}
	async start() {
		try {
			this.info = await this.api.info();
			this.changed();
		} catch (error) {
			this.fail(error);
		}
		await Promise.all([this.refreshState(), this.refreshNetworks()]);
		clearInterval(this.watch);
		this.watch = setInterval(() => {
			if (!document.hidden && !this.down) this.refreshState();
		}, STATE_EVERY);
	}
	stop() {
		clearInterval(this.watch);
	}
	async refreshState() {
		try {
			const before = this.state;
			this.state = await this.api.state();
			this.changed();
			const ended = before?.training && !this.state.training;
			if (before && (ended || before.last?.network !== this.state.last?.network)) await this.refreshNetworks(true);
		} catch (error) {
			if (error instanceof UnreachableError) this.fail(error);
		}
	}
	/** Ask which networks there are; `tell` says so where there is a new one. */
	async refreshNetworks(tell = false) {
		try {
			const before = this.networks;
			this.networks = await this.api.networks();
			const names = this.networkNames;
			this.network = this.network && names.includes(this.network) ? this.network : names[0] ?? null;
			if (!this.network) this.model = "text";
			const fresh = names.find((name) => served(this.networks[name])?.version !== served(before[name])?.version);
			const network = fresh === void 0 ? void 0 : served(this.networks[fresh]);
			if (tell && network && !this.work && !this.error) this.note = `${called(network)} has been trained${network.status === "unvalidated" ? ", and not been validated" : ""}; choose "By the trained network" to run it.`;
			this.changed();
		} catch (error) {
			this.fail(error);
		}
	}
	/** What the server has measured of a finding; undefined where it has not. */
	measurementsOf(finding) {
		return this.measured.get(finding.planes);
	}
	measureSoon() {
		clearTimeout(this.measureTimer);
		this.measureTimer = setTimeout(() => void this.measure(), MEASURE_DELAY);
	}
	/** Have the server measure what has changed. */
	async measure() {
		const image = this.image;
		const asked = this.findings.filter((each) => each.planes.size && !this.measured.has(each.planes));
		if (!image || this.measuring || !asked.length) return;
		this.measuring = true;
		try {
			const segments = toSegments(asked).map(({ name, planes }) => ({
				name,
				planes
			}));
			const found = await this.api.measure(image.image, segments);
			asked.forEach((finding, k) => {
				const measured = found[k];
				if (measured) this.measured.set(finding.planes, measured);
			});
			this.unmeasured = null;
			this.measureSoon();
		} catch (error) {
			this.unmeasured = error instanceof Error ? error.message : String(error);
			if (error instanceof UnreachableError) this.fail(error);
		} finally {
			this.measuring = false;
		}
		this.changed();
	}
	/** Follow what the viewer shows. */
	async show(shown) {
		const plane = shown && this.image ? planeOf(this.image, shown) : -1;
		if (plane >= 0) {
			if (plane !== this.plane) {
				this.plane = plane;
				this.changed();
			}
			return;
		}
		if (!shown) return;
		const key = `${shown.series}/${shown.instance}`;
		if (this.loading === key) return;
		this.loading = key;
		await this.flush();
		try {
			const image = await this.api.image(shown.study, shown.series, shown.instance, shown.frame);
			if (this.loading === key) await this.open(image, planeOf(image, shown));
		} catch (error) {
			this.image = null;
			this.history = new History();
			this.fail(error);
		} finally {
			if (this.loading === key) {
				this.loading = null;
				this.changed();
			}
		}
	}
	async open(image, plane) {
		this.image = image;
		this.plane = plane < 0 ? null : plane;
		this.history = new History();
		this.active = null;
		this.error = this.note = null;
		this.theirs = this.otherDraft = this.asksEmpty = this.adjudication = null;
		this.map = null;
		this.unmeasured = null;
		this.base = this.savedBy = null;
		this.revision = null;
		this.keptAt = null;
		this.draftState = "none";
		this.changed();
		const [found, label, several] = await Promise.all([
			this.api.draft(image.image),
			this.api.label(image.image),
			this.api.toAdjudicate(image.image)
		]);
		if (this.image !== image) return;
		this.adjudication = several && readingsOf(several, this.size);
		const draft = found?.own === false && label?.at && found.saved_at && isBefore(found.saved_at, label.at) ? null : found;
		if (label) {
			this.base = label.version;
			this.savedBy = label.by ?? "";
		}
		const proposal = draft || label || several ? null : await this.proposed(image);
		if (this.image !== image) return;
		const kept = draft ?? label ?? proposal;
		if (kept && !this.findings.length) {
			this.history = new History(fromSegments(kept.segments, this.size));
			this.active = this.findings[0]?.id ?? null;
		}
		if (draft) {
			const own = draft.own !== false;
			this.base = draft.base;
			this.revision = own ? draft.revision ?? null : null;
			this.draftState = "kept";
			this.keptAt = draft.saved_at ? new Date(draft.saved_at) : /* @__PURE__ */ new Date();
			this.note = own ? "Your unsaved work on this image is back." : "Unsaved work from another browser is shown; what you change is kept beside it.";
		} else if (label) {
			const what = label.consensus ? "The consensus of the readers" : "The saved label";
			this.note = `${what} of this image is shown${reviewed(label.review)}.`;
		} else if (proposal && this.findings.length) {
			const by = {
				"zero-shot": " by text",
				"pre-annotation": " before"
			};
			this.note = `A mask that was made${by[proposal.by] ?? ` by ${proposal.by}`} waits here: correct it, then save it.`;
		}
		const first = this.adjudication?.readings.flatMap((each) => each.masks).find((mask) => mask.planes.size);
		if (this.findings.length) {
			this.measureSoon();
			this.reveal();
		} else if (first) this.reveal(first.planes);
		else if (this.isVolume && this.plane !== null && (this.plane === 0 || this.plane === image.planes.length - 1)) this.goTo(Math.floor(image.planes.length / 2));
		this.changed();
	}
	/** Return what a model has left for this image; without it the image is labelled as any other. */
	async proposed(image) {
		try {
			return await this.api.proposal(image.image);
		} catch (error) {
			this.fail(error);
			return null;
		}
	}
	/** Run a text, or the network, on the image. */
	async run(text) {
		const image = this.image;
		const asked = text.trim();
		if (!image) {
			this.error = "No image is open that the server knows.";
			this.changed();
			return;
		}
		if (this.model === "text") {
			if (!asked) {
				this.error = "Type what to look for, such as \"left lung; heart\".";
				this.changed();
				return;
			}
			this.remember(asked);
		}
		const source = this.model;
		const network = source === "network" ? this.chosenNetwork : null;
		if (source === "network" && !network) {
			this.error = "No network has been trained on these studies yet.";
			this.changed();
			return;
		}
		await this.during(network ? `Running ${called(network)}` : `Looking for ${asked}`, async (work) => {
			const model = network?.name ?? "text_prompt";
			const unvalidated = network?.status === "unvalidated" ? { unvalidated: true } : {};
			const params = network ? unvalidated : { text: asked };
			const begin = this.findings;
			const masks = /* @__PURE__ */ new Map();
			const answer = await this.listen(image, model, params, work, (name, plane, runs) => {
				const planes = masks.get(name) ?? /* @__PURE__ */ new Map();
				masks.set(name, planes.set(plane, runs));
				let partial = begin;
				for (const [each, found] of masks) partial = withAnswer(partial, {
					name: each,
					source,
					planes: new Map(found),
					evidence: null
				}).findings;
				this.preview = partial;
			});
			this.take(image, answer, source, network ? called(network) : asked);
		});
	}
	get drawn() {
		return this.preview ?? this.findings;
	}
	/** Correct the active finding by clicks in it, or outside of it. */
	click(points, positive) {
		if (!positive && !this.activeFinding) {
			this.fail(/* @__PURE__ */ new Error("Choose the finding to take away from."));
			return;
		}
		const marks = points.map((point) => ({
			...point,
			positive
		}));
		this.marks = [...this.marks, ...marks];
		this.changed();
		this.refine(positive ? { foreground: points } : { background: points }).finally(() => {
			this.marks = this.marks.filter((mark) => !marks.includes(mark));
			this.changed();
		});
	}
	/** Correct the active finding by clicks or a box, or carry it through the volume. */
	refine(clicks, propagate = false) {
		const image = this.image;
		if (!image || propagate && !(this.canPropagate && this.activeFinding?.planes.size)) return Promise.resolve();
		this.chain = this.chain.then(async () => {
			if (this.image !== image) return;
			const finding = this.activeFinding ?? this.begin();
			const what = propagate ? `Carrying ${finding.name} through the volume` : `Correcting ${finding.name}`;
			await this.during(what, async (work) => {
				const params = {
					label: finding.name,
					clicks,
					segments: toSegments([finding]).map(({ name, planes }) => ({
						name,
						planes
					})),
					...propagate ? { propagate } : {}
				};
				let present = finding;
				const segment = (await this.listen(image, "refine", params, work, (_name, plane, runs) => {
					present = withPlane(present, plane, runs);
					this.preview = replace(this.findings, finding.id, present);
				})).segments[0];
				if (segment) {
					const source = finding.source === "hand" && !finding.planes.size ? "clicks" : finding.source;
					const planes = planesOf(segment, this.size);
					this.push(replace(this.findings, finding.id, {
						planes,
						edited: true,
						source,
						visible: true
					}), what);
				}
			});
		});
		return this.chain;
	}
	async during(what, run) {
		const work = {
			what,
			request: [...crypto.getRandomValues(/* @__PURE__ */ new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join(""),
			fraction: null,
			message: "",
			secondsLeft: null,
			cancelled: false
		};
		this.work = work;
		this.error = this.note = null;
		this.changed();
		try {
			await run(work);
		} catch (error) {
			if (work.cancelled) this.note = `${what}: cancelled.`;
			else this.fail(error);
		} finally {
			if (this.work === work) this.work = null;
			this.preview = null;
			this.changed();
		}
	}
	async listen(image, model, params, work, partial) {
		for await (const line of this.api.infer(model, image.image, params, work.request)) {
			if (line.event === "progress") {
				work.fraction = line.fraction ?? null;
				work.message = line.message ?? "";
				work.secondsLeft = line.seconds_left ?? null;
			} else if (line.event === "mask") {
				if (this.image === image) partial(line.target, line.plane, line.runs);
			} else if (line.event === "error") throw new ServerError(line.status, line.detail);
			else {
				performance.mark(ANSWERED);
				return line;
			}
			this.changed();
		}
		throw new UnreachableError("The server ended the answer before its result; it may have been stopped.");
	}
	async cancel() {
		const work = this.work;
		if (!work || work.cancelled) return;
		work.cancelled = true;
		work.message = "cancelling";
		this.changed();
		try {
			await this.api.cancel(work.request);
		} catch (error) {
			work.cancelled = false;
			this.fail(error);
		}
	}
	take(image, answer, source, what) {
		if (this.image !== image) return;
		let findings = this.findings;
		let first = null;
		let found = null;
		const targets = new Map((answer.params.targets ?? []).map((target) => [target.name, target]));
		for (const segment of answer.segments) {
			const target = targets.get(segment.name);
			const planes = planesOf(segment, this.size);
			const evidence = evidenceOf(segment.name, target, answer);
			const taken = withAnswer(findings, {
				name: segment.name,
				source,
				planes,
				evidence
			});
			findings = taken.findings;
			first ??= taken.id;
			found ??= planes.size ? taken.id : null;
		}
		this.active = found ?? first ?? this.active;
		this.push(findings, what);
		this.reveal();
		if (!answer.segments.length) this.note = answer.params.sentence ?? "The model answered without a finding.";
	}
	/** Make an empty finding to draw on. */
	begin(name = "finding") {
		const made = makeFinding(this.findings, {
			name: freeName(this.findings, name),
			source: "hand",
			planes: /* @__PURE__ */ new Map()
		});
		this.active = made.id;
		this.push([...this.findings, made], `new ${made.name}`);
		return made;
	}
	push(findings, what) {
		const { history } = this;
		history.push(findings, what);
		this.steps?.push({ restoreMemo: (undo) => {
			if (this.history === history && (undo ? history.undo() : history.redo())) this.touched();
		} });
		this.touched();
	}
	undo() {
		if (this.steps) this.steps.undo();
		else if (this.history.undo()) this.touched();
	}
	redo() {
		if (this.steps) this.steps.redo();
		else if (this.history.redo()) this.touched();
	}
	/** Put a hand-drawn plane in place. */
	draw(finding, plane, runs, what) {
		const changed = withPlane(finding, plane, runs);
		this.push(replace(this.findings, finding.id, {
			planes: changed.planes,
			edited: true,
			visible: true
		}), what);
	}
	rename(id, name) {
		const wanted = name.trim();
		const finding = this.findings.find((each) => each.id === id);
		if (!finding || !wanted || wanted === finding.name) return;
		if (this.findings.some((each) => each.name === wanted)) {
			this.error = `There is a finding "${wanted}" already; names must differ.`;
			this.changed();
			return;
		}
		this.push(replace(this.findings, id, {
			name: wanted,
			edited: true
		}), `rename ${finding.name}`);
	}
	clear(id) {
		const finding = this.findings.find((each) => each.id === id);
		if (finding) {
			const left = this.findings.filter((each) => each.id !== id);
			if (this.active === id) this.active = left[0]?.id ?? null;
			if (this.map?.finding === id) this.map = null;
			this.push(left, `clear ${finding.name}`);
		}
	}
	setVisible(id, visible) {
		this.history.amend(replace(this.findings, id, { visible }));
		this.changed();
	}
	select(id) {
		this.active = id;
		this.reveal();
		this.changed();
	}
	/** Show the plane on which the active finding is largest, unless it is on the one that is shown. */
	reveal(planes = this.activeFinding?.planes) {
		if (!planes?.size || this.plane !== null && planes.has(this.plane)) return;
		const [largest] = [...planes].reduce((best, each) => area(each[1]) > area(best[1]) ? each : best);
		this.goTo(largest);
	}
	goTo(plane) {
		this.dispatchEvent(new CustomEvent("reveal", { detail: plane }));
	}
	setTool(tool) {
		this.tool = tool;
		this.changed();
	}
	/** Show a map of the active finding, or none where it is shown. */
	toggleMap(kind) {
		const finding = this.activeFinding;
		if (this.map?.kind === kind) this.map = null;
		else if (finding?.evidence?.[kind]) this.map = {
			kind,
			opacity: this.map?.opacity ?? .6,
			finding: finding.id
		};
		else this.error = finding ? `There is no ${kind} map of ${finding.name}; ${kind === "saliency" ? "a text" : "a network"} makes one.` : "Choose a finding first.";
		this.changed();
	}
	/** Draw the axes of the active finding, on the plane that they are on, or no longer. */
	toggleAxes() {
		this.axes = !this.axes;
		const finding = this.activeFinding;
		const plane = finding && this.measurementsOf(finding)?.long_axis?.plane;
		if (this.axes && plane !== void 0 && plane !== this.plane) this.goTo(plane);
		this.changed();
	}
	touched() {
		if (this.active !== null && !this.activeFinding) this.active = this.findings[0]?.id ?? null;
		this.draftState = "waiting";
		clearTimeout(this.timer);
		this.timer = setTimeout(() => void this.keep(), DRAFT_DELAY);
		this.measureSoon();
		this.changed();
	}
	/** Keep at once what waits to be kept. */
	async flush() {
		if (this.draftState === "waiting" || this.draftState === "failed") {
			clearTimeout(this.timer);
			await this.keep();
		}
	}
	async keep(overwrite = false) {
		const image = this.image;
		if (!image) return;
		const kept = this.findings;
		this.draftState = "keeping";
		this.changed();
		try {
			const draft = await this.api.keepDraft(image.image, {
				segments: toDraft(kept),
				base: this.base,
				revision: this.revision ?? null
			});
			if (this.image !== image) return;
			this.revision = draft.revision ?? null;
			this.keptAt = /* @__PURE__ */ new Date();
			if (this.findings === kept || overwrite) this.draftState = "kept";
		} catch (error) {
			if (this.image !== image) return;
			this.draftState = "failed";
			if (error instanceof ServerError && error.status === 409) {
				this.otherDraft = draftIn(error.body);
				this.error = this.otherDraft ? null : error.message;
			} else this.fail(error);
		}
		this.changed();
	}
	/** Go on with the draft of another window, or put this one in its place. */
	async settleDraft(which) {
		const other = this.otherDraft;
		if (!other) return;
		this.otherDraft = null;
		this.revision = other.revision ?? null;
		if (which === "theirs") {
			this.push(fromSegments(other.segments, this.size), "draft of the other window");
			this.base = other.base;
		}
		await this.keep();
	}
	/**
	* Save the findings as the image's label.
	*
	* @param asNew whether the label before is kept beside it
	* @param sure whether an empty label is meant
	*/
	async save(asNew = false, sure = false) {
		const image = this.image;
		if (!image) return;
		this.asksEmpty = sure || this.findings.some((each) => each.planes.size) ? null : { asNew };
		if (this.asksEmpty) {
			this.changed();
			return;
		}
		if (this.adjudication) {
			await this.adjudicate({
				method: "drawn",
				segments: toSegments(this.findings)
			});
			return;
		}
		clearTimeout(this.timer);
		this.error = this.note = null;
		const saved = this.findings;
		try {
			const answer = await this.api.save(image.image, {
				segments: toSegments(saved),
				base: this.base,
				as_new: asNew
			});
			this.base = answer.version;
			this.savedBy = answer.by ?? "";
			this.theirs = null;
			this.revision = null;
			await this.api.dropDraft(image.image).catch((error) => this.fail(error));
			const size = saved.filter((each) => each.planes.size).length;
			this.note = size ? `Saved${asNew ? " as a new label" : ""}: ${size} finding${size > 1 ? "s" : ""}, read back by the server.` : "Saved: this image has none of these findings.";
			if (this.withReport) try {
				await this.api.storeReport(image.image);
				this.note += " Its measurements are in the PACS as a structured report.";
			} catch (error) {
				const why = error instanceof Error ? error.message : String(error);
				this.fail(/* @__PURE__ */ new Error(`The label is saved, its measurements are not stored in the PACS: ${why}`));
			}
			if (this.findings === saved) {
				this.draftState = "none";
				this.keptAt = null;
			}
			this.refreshState();
		} catch (error) {
			const theirs = error instanceof ServerError && error.status === 409 ? savedIn(error.body) : null;
			if (theirs) this.theirs = {
				findings: fromSegments(theirs.segments, this.size),
				saved: theirs
			};
			else {
				if (error instanceof ServerError && error.status === 409) this.base = null;
				this.fail(error);
			}
		}
		this.changed();
	}
	/** Settle a conflict: keep mine in the place of theirs, go on with theirs, or save mine beside theirs. */
	async settle(which) {
		const theirs = this.theirs;
		if (!theirs) return;
		this.theirs = null;
		this.base = theirs.saved.version;
		if (which !== "theirs") await this.save(which === "both");
		else this.push(theirs.findings, "label of the other");
	}
	/** Make the consensus of the readers' labels, and show it. */
	async adjudicate(consensus) {
		const { image, adjudication } = this;
		if (!image || !adjudication) return;
		clearTimeout(this.timer);
		this.error = this.note = null;
		this.asksEmpty = null;
		try {
			await this.api.adjudicate(image.image, consensus, seen(adjudication));
			await this.api.dropDraft(image.image).catch((error) => this.fail(error));
			if (this.image !== image) return;
			await this.open(image, this.plane ?? -1);
			this.note = "The consensus is saved; it is the label of this image from now on.";
			this.refreshState();
		} catch (error) {
			this.fail(error);
			if (error instanceof ServerError && error.status === 409) {
				const several = await this.api.toAdjudicate(image.image).catch(() => null);
				if (several && this.image === image) this.adjudication = readingsOf(several, this.size);
			}
		}
		this.changed();
	}
	showReading(reader, visible) {
		this.adjudication = this.adjudication && withVisible(this.adjudication, reader, visible);
		this.changed();
	}
	/** Put a copy of a reader's label among the findings, in the place of what is there. */
	copyReading(reader) {
		const reading = this.adjudication?.readings.find((each) => each.reader === reader);
		if (reading) {
			this.push(fromSegments([...reading.segments], this.size), `the label of ${reading.shown}`);
			this.active = this.findings[0]?.id ?? null;
			this.reveal();
			this.changed();
		}
	}
	async review(verdict, reason = "") {
		if (!this.image) return;
		try {
			await this.api.review(this.image.image, verdict, reason);
			this.note = verdict === "approved" ? "The label is approved." : "The label is rejected and is offered again.";
			this.error = null;
			this.refreshState();
		} catch (error) {
			this.fail(error);
		}
		this.changed();
	}
	/** Why this image was offered; null where it was chosen by hand. */
	get sampleReason() {
		return this.storage.getItem(`${REASON_KEY}.${this.image?.image ?? ""}`);
	}
	/** Open the image that the server offers next, by its first strategy or another one. */
	async goNext(strategy = Object.keys(this.info?.strategies ?? {})[0] ?? "combined") {
		this.error = null;
		await this.flush();
		try {
			const sample = await this.api.next(strategy);
			if (!sample.id || !sample.StudyInstanceUID) {
				this.note = `No image is left to be ${strategy === "adjudication" ? "adjudicated" : "labelled"}.`;
				this.changed();
				return;
			}
			this.storage.setItem(`${REASON_KEY}.${sample.id}`, REASONS[sample.why ?? ""] ?? `Chosen by the strategy "${strategy}".`);
			this.dispatchEvent(new CustomEvent("open", { detail: sample }));
		} catch (error) {
			this.fail(error);
			this.changed();
		}
	}
	remember(text) {
		const recent = [text, ...this.recent.filter((each) => each !== text)].slice(0, MOST_RECENT);
		this.storage.setItem(RECENT_KEY, JSON.stringify(recent));
		this.storage.setItem(LAST_KEY, text);
	}
	wentDown(message) {
		if (!this.down) setTimeout(() => void this.look(), LOOK_AGAIN);
		this.down = message;
	}
	async look() {
		if (!await this.api.isUp()) {
			setTimeout(() => void this.look(), LOOK_AGAIN);
			return;
		}
		this.down = null;
		this.note = "The server answers again.";
		this.measureSoon();
		this.changed();
		await this.flush();
	}
};
/** Return the version of a network that runs: the one that is served, else the newest that could not be validated. */
function served(known) {
	const { current, networks } = known ?? {
		current: null,
		networks: []
	};
	return networks.find((each) => each.version === current) ?? networks.findLast((each) => each.status === "unvalidated");
}
/** Return what a network is called: "network version 2", or "lungs (network version 2)". */
var called = ({ name, version }) => name === "network" ? `network version ${version}` : `${name} (network version ${version})`;
function reviewed(review) {
	return review ? `; a reviewer has ${review.verdict} it${review.reason ? `: ${review.reason}` : ""}` : "";
}
var isBefore = (one, other) => new Date(one).getTime() < new Date(other).getTime();
function planeOf(image, shown) {
	return image.planes.findIndex((plane) => plane.sop === shown.instance && plane.frame === shown.frame);
}
function evidenceOf(name, target, answer) {
	if (!target) return null;
	const maps = answer.maps?.[name];
	const url = (kind) => maps?.[kind] ?? null;
	return {
		presence: target.presence_score ?? null,
		threshold: target.presence_threshold ?? null,
		reason: target.reason ?? "",
		doubt: target.doubt ?? "",
		network: answer.params.network ? called(answer.params.network) : null,
		uncertaintyScore: target.uncertainty_score ?? null,
		mapPlanes: maps?.planes ?? null,
		saliency: url("saliency"),
		uncertainty: url("uncertainty")
	};
}
function draftIn(body) {
	const told = body;
	const found = told?.theirs ?? told?.draft;
	return found && Array.isArray(found.segments) ? found : null;
}
function savedIn(body) {
	const found = body?.theirs;
	return found && Array.isArray(found.segments) ? found : null;
}
// src/overlay.ts
var INSTANCE = /studies\/([^/?#]+)\/series\/([^/?#]+)\/instances\/([^/?#]+)(?:\/frames\/(\d+))?/;
var OUTLINE_ALPHA = 235;
/** Of the outlines of somebody else's label; no finding has it. */
var THEIRS = [
	255,
	80,
	200
];
/** Most points that a scribble is sent as. */
var SCRIBBLE_POINTS = 12;
/** Read where an image is from its address in the viewer; null for one that did not come by DICOMweb. */
function shownOf(imageId) {
	const [, study, series, instance, frame] = (imageId ? INSTANCE.exec(imageId) : null) ?? [];
	return study && series && instance ? {
		study,
		series,
		instance,
		frame: Number(frame ?? 1)
	} : null;
}
/** Paint a mask into an RGBA picture: its inside with an opacity from 0 to 1, and its outline. */
function paint(bitmap, columns, colour, opacity) {
	const picture = new Uint8ClampedArray(bitmap.length * 4);
	const words = new Uint32Array(picture.buffer);
	const [red, green, blue] = colour;
	const word = (alpha) => (alpha << 24 | blue << 16 | green << 8 | red) >>> 0;
	const inside = word(Math.round(255 * opacity));
	const outline = word(OUTLINE_ALPHA);
	const last = bitmap.length - columns;
	for (let at = bitmap.indexOf(1); at >= 0; at = bitmap.indexOf(1, at + 1)) {
		const column = at % columns;
		const inner = column > 0 && column < columns - 1 && at >= columns && at < last && bitmap[at - 1] && bitmap[at + 1] && bitmap[at - columns] && bitmap[at + columns];
		words[at] = inner ? inside : outline;
	}
	return picture;
}
var Overlay = class {
	constructor(viewport, session, maps, activate) {
		this.viewport = viewport;
		this.session = session;
		this.maps = maps;
		this.activate = activate;
		this.canvas = document.createElement("canvas");
		this.composed = document.createElement("canvas");
		this.scratch = document.createElement("canvas");
		this.composedOf = [];
		this.stroke = null;
		this.path = [];
		this.start = null;
		this.pointer = null;
		this.awaited = 0;
		this.listeners = new AbortController();
		this.dispatch = () => void 0;
		this.canvas.className = "medclipsam-overlay";
		Object.assign(this.canvas.style, {
			position: "absolute",
			inset: "0",
			width: "100%",
			height: "100%"
		});
		this.canvas.setAttribute("aria-hidden", "true");
		viewport.element.append(this.canvas);
		const signal = this.listeners.signal;
		viewport.element.addEventListener(IMAGE_RENDERED, () => this.rendered(), { signal });
		session.addEventListener("change", () => this.schedule(), { signal });
		maps.addEventListener("change", () => this.schedule(), { signal });
		this.listen(signal);
		this.rendered();
	}
	destroy() {
		this.listeners.abort();
		cancelAnimationFrame(this.awaited);
		this.canvas.remove();
	}
	get shown() {
		return shownOf(this.viewport.getCurrentImageId?.());
	}
	/** Scroll to a plane of the session's image. */
	reveal(plane) {
		const wanted = this.session.image?.planes[plane];
		const index = (this.viewport.getImageIds?.() ?? []).findIndex((id) => {
			const shown = shownOf(id);
			return shown?.instance === wanted?.sop && shown?.frame === wanted?.frame;
		});
		if (index >= 0) this.viewport.setImageIdIndex?.(index);
	}
	get plane() {
		const { image } = this.session;
		const shown = this.shown;
		return image && shown ? planeOf(image, shown) : -1;
	}
	rendered() {
		this.dispatch();
		this.draw();
	}
	schedule() {
		cancelAnimationFrame(this.awaited);
		this.awaited = requestAnimationFrame(() => this.draw());
	}
	affine(image) {
		const data = this.viewport.getImageData?.()?.imageData;
		if (!data) return null;
		const at = (x, y) => this.viewport.worldToCanvas(data.indexToWorld([
			x,
			y,
			0
		]));
		const origin = at(0, 0);
		const right = at(image.columns, 0);
		const down = at(0, image.rows);
		const found = {
			a: (right[0] - origin[0]) / image.columns,
			b: (right[1] - origin[1]) / image.columns,
			c: (down[0] - origin[0]) / image.rows,
			d: (down[1] - origin[1]) / image.rows,
			e: origin[0],
			f: origin[1]
		};
		return Object.values(found).every(Number.isFinite) ? found : null;
	}
	draw() {
		const { session, canvas } = this;
		const ratio = window.devicePixelRatio || 1;
		const width = Math.round(canvas.clientWidth * ratio);
		const height = Math.round(canvas.clientHeight * ratio);
		if (canvas.width !== width || canvas.height !== height) {
			canvas.width = width;
			canvas.height = height;
		}
		const context = canvas.getContext("2d");
		const { image } = session;
		const plane = this.plane;
		const editable = image !== null && plane >= 0 && session.tool !== "navigate";
		canvas.style.pointerEvents = editable ? "auto" : "none";
		canvas.style.cursor = editable ? session.tool === "brush" || session.tool === "eraser" ? "none" : "crosshair" : "";
		if (!context) return;
		context.setTransform(1, 0, 0, 1, 0, 0);
		context.clearRect(0, 0, width, height);
		const affine = image && plane >= 0 ? this.affine(image) : null;
		if (!image || !affine) return;
		this.compose(image, plane);
		const { a, b, c, d, e, f } = affine;
		context.setTransform(a * ratio, b * ratio, c * ratio, d * ratio, e * ratio, f * ratio);
		context.imageSmoothingEnabled = false;
		if (session.map) {
			const map = this.maps.get(session, plane);
			if (map) {
				context.globalAlpha = session.map.opacity;
				context.imageSmoothingEnabled = true;
				context.drawImage(map, -.5, -.5, image.columns, image.rows);
				context.imageSmoothingEnabled = false;
				context.globalAlpha = 1;
			}
		}
		if (!session.hidden) {
			context.drawImage(this.composed, -.5, -.5);
			if (this.stroke) {
				this.put(this.stroke.bitmap, image, this.stroke.finding.colour);
				context.drawImage(this.scratch, -.5, -.5);
			}
		}
		if (session.axes && !session.hidden) this.drawAxes(context, plane, 1 / Math.hypot(a, b));
		this.drawMarks(context, 1 / Math.hypot(a, b));
		if (performance.getEntriesByName("medclipsam.answer").length) {
			performance.measure("medclipsam.overlay", ANSWERED);
			performance.clearMarks(ANSWERED);
		}
	}
	/** Paint all findings of the plane into one picture, where something has changed. */
	compose(image, plane) {
		const { session } = this;
		const left = this.stroke?.finding.id;
		const key = [
			image,
			plane,
			session.drawn,
			session.opacity,
			session.theirs,
			session.adjudication,
			session.active,
			left
		];
		if (key.every((each, k) => each === this.composedOf[k])) return;
		this.composedOf = key;
		for (const canvas of [this.composed, this.scratch]) {
			canvas.width = image.columns;
			canvas.height = image.rows;
		}
		const context = this.composed.getContext("2d", { willReadFrequently: true });
		const each = (findings, opacity, colour) => {
			for (const finding of findings) {
				const runs = finding.planes.get(plane);
				if (runs && finding.visible && finding.id !== left) {
					this.put(toBitmap(runs, image.rows * image.columns), image, colour ?? finding.colour, opacity);
					context?.drawImage(this.scratch, 0, 0);
				}
			}
		};
		each(session.drawn, session.opacity);
		each(session.theirs?.findings ?? [], 0, THEIRS);
		for (const { masks, colour, visible } of session.adjudication?.readings ?? []) for (const { planes } of visible ? masks : []) {
			const runs = planes.get(plane);
			if (runs) {
				this.put(toBitmap(runs, image.rows * image.columns), image, colour, 0);
				context?.drawImage(this.scratch, 0, 0);
			}
		}
	}
	put(bitmap, image, colour, opacity = this.session.opacity) {
		const picture = new ImageData(paint(bitmap, image.columns, colour, opacity), image.columns, image.rows);
		this.scratch.getContext("2d", { willReadFrequently: true })?.putImageData(picture, 0, 0);
	}
	/** Draw the axes of the active finding, where they are on the plane. */
	drawAxes(context, plane, pixel) {
		const finding = this.session.activeFinding;
		const measured = finding && this.session.measurementsOf(finding);
		for (const axis of [measured?.long_axis, measured?.short_axis]) if (axis?.plane === plane) for (const [width, colour] of [[4, "rgb(0 0 0 / 0.7)"], [1.5, "white"]]) {
			context.lineWidth = width * pixel;
			context.strokeStyle = colour;
			context.beginPath();
			context.moveTo(...axis.start);
			context.lineTo(...axis.end);
			context.stroke();
		}
	}
	drawMarks(context, pixel) {
		const { session } = this;
		const plane = this.plane;
		context.lineWidth = 2 * pixel;
		for (const mark of session.marks) if (mark.plane === plane) {
			context.beginPath();
			context.arc(mark.x, mark.y, 5 * pixel, 0, 2 * Math.PI);
			context.fillStyle = mark.positive ? "rgb(0 200 80)" : "rgb(230 40 40)";
			context.fill();
			context.strokeStyle = "white";
			context.stroke();
		}
		context.strokeStyle = css(session.activeFinding?.colour ?? [
			255,
			255,
			255
		]);
		if (this.start && this.pointer && session.tool === "box") {
			const [x, y] = this.start;
			context.strokeRect(x, y, this.pointer[0] - x, this.pointer[1] - y);
		}
		if (this.path.length && session.tool === "scribble") {
			context.beginPath();
			for (const [x, y] of this.path) context.lineTo(x, y);
			context.stroke();
		}
		if (this.pointer && (session.tool === "brush" || session.tool === "eraser")) {
			context.setLineDash(session.tool === "eraser" ? [4 * pixel, 4 * pixel] : []);
			context.beginPath();
			context.arc(this.pointer[0], this.pointer[1], session.brush, 0, 2 * Math.PI);
			context.stroke();
			context.setLineDash([]);
		}
	}
	listen(signal) {
		const { canvas } = this;
		const own = (event) => event.button === 0;
		for (const type of [
			"mousedown",
			"mouseup",
			"click",
			"dblclick"
		]) canvas.addEventListener(type, (event) => own(event) && event.stopPropagation(), { signal });
		canvas.addEventListener("pointerdown", (event) => own(event) && this.down(event), { signal });
		canvas.addEventListener("pointermove", (event) => this.move(event), { signal });
		canvas.addEventListener("pointerup", (event) => own(event) && this.up(event), { signal });
		canvas.addEventListener("pointercancel", () => this.drop(), { signal });
		canvas.addEventListener("pointerleave", () => {
			this.pointer = null;
			this.schedule();
		}, { signal });
	}
	at(event) {
		const { image } = this.session;
		const affine = image ? this.affine(image) : null;
		if (!affine) return null;
		const box = this.canvas.getBoundingClientRect();
		const x = event.clientX - box.left - affine.e;
		const y = event.clientY - box.top - affine.f;
		const { a, b, c, d } = affine;
		const determinant = a * d - b * c;
		return determinant ? [(d * x - c * y) / determinant, (a * y - b * x) / determinant] : null;
	}
	down(event) {
		const { session } = this;
		const { image } = session;
		const at = this.at(event);
		const plane = this.plane;
		if (!image || !at || plane < 0) return;
		this.activate();
		event.preventDefault();
		this.canvas.setPointerCapture(event.pointerId);
		this.pointer = this.start = at;
		this.path = [at];
		if (session.tool === "brush" || session.tool === "eraser") {
			const finding = session.activeFinding ?? (session.tool === "brush" ? session.begin() : void 0);
			if (!finding) {
				session.fail(/* @__PURE__ */ new Error("Choose the finding to erase from."));
				this.drop();
				return;
			}
			const bitmap = toBitmap(finding.planes.get(plane) ?? [], image.rows * image.columns);
			const value = session.tool === "brush" ? 1 : 0;
			this.stroke = {
				finding,
				bitmap,
				value,
				last: at
			};
			drawStroke(bitmap, image.columns, at, at, session.brush, value);
		}
		this.schedule();
	}
	move(event) {
		const { session } = this;
		const at = this.at(event);
		if (!at) return;
		this.pointer = at;
		if (this.start) this.path.push(at);
		if (this.stroke && session.image) {
			drawStroke(this.stroke.bitmap, session.image.columns, this.stroke.last, at, session.brush, this.stroke.value);
			this.stroke.last = at;
		}
		this.schedule();
	}
	up(event) {
		const { session, start, path, stroke } = this;
		const plane = this.plane;
		const at = this.at(event) ?? this.pointer;
		const { image } = session;
		this.drop();
		if (!image || !start || !at || plane < 0) return;
		const inside = ([x, y]) => ({
			plane,
			x: Math.min(image.columns - 1, Math.max(0, Math.round(x))),
			y: Math.min(image.rows - 1, Math.max(0, Math.round(y)))
		});
		if (stroke) {
			const what = stroke.value ? `brush on ${stroke.finding.name}` : `eraser on ${stroke.finding.name}`;
			session.draw(stroke.finding, plane, toRuns(stroke.bitmap), what);
		} else if (session.tool === "positive" || session.tool === "negative") {
			const positive = session.tool === "positive" !== event.altKey;
			session.click([inside(at)], positive);
		} else if (session.tool === "scribble") {
			const every = Math.max(1, Math.ceil(path.length / SCRIBBLE_POINTS));
			session.click(path.filter((_, k) => k % every === 0).map(inside), !event.altKey);
		} else if (session.tool === "box") {
			const [one, other] = [inside(start), inside(at)];
			if (Math.abs(one.x - other.x) > 1 && Math.abs(one.y - other.y) > 1) {
				const [x0, x1] = [Math.min(one.x, other.x), Math.max(one.x, other.x)];
				const [y0, y1] = [Math.min(one.y, other.y), Math.max(one.y, other.y)];
				session.refine({ boxes: [{
					plane,
					x0,
					y0,
					x1,
					y1
				}] });
			}
		}
	}
	drop() {
		this.stroke = this.start = null;
		this.path = [];
		this.schedule();
	}
};
// node_modules/@lit/reactive-element/css-tag.js
/**
* @license
* Copyright 2019 Google LLC
* SPDX-License-Identifier: BSD-3-Clause
*/
var t$1 = globalThis;
var e$2 = t$1.ShadowRoot && (void 0 === t$1.ShadyCSS || t$1.ShadyCSS.nativeShadow) && "adoptedStyleSheets" in Document.prototype && "replace" in CSSStyleSheet.prototype;
var s$2 = Symbol();
var o$3 = /* @__PURE__ */ new WeakMap();
var n$2 = class {
	constructor(t, e, o) {
		if (this._$cssResult$ = !0, o !== s$2) throw Error("CSSResult is not constructable. Use `unsafeCSS` or `css` instead.");
		this.cssText = t, this.t = e;
	}
	get styleSheet() {
		let t = this.o;
		const s = this.t;
		if (e$2 && void 0 === t) {
			const e = void 0 !== s && 1 === s.length;
			e && (t = o$3.get(s)), void 0 === t && ((this.o = t = new CSSStyleSheet()).replaceSync(this.cssText), e && o$3.set(s, t));
		}
		return t;
	}
	toString() {
		return this.cssText;
	}
};
var r$2 = (t) => new n$2("string" == typeof t ? t : t + "", void 0, s$2);
var i$3 = (t, ...e) => {
	return new n$2(1 === t.length ? t[0] : e.reduce((e, s, o) => e + ((t) => {
		if (!0 === t._$cssResult$) return t.cssText;
		if ("number" == typeof t) return t;
		throw Error("Value passed to 'css' function must be a 'css' function result: " + t + ". Use 'unsafeCSS' to pass non-literal values, but take care to ensure page security.");
	})(s) + t[o + 1], t[0]), t, s$2);
};
var S$1 = (s, o) => {
	if (e$2) s.adoptedStyleSheets = o.map((t) => t instanceof CSSStyleSheet ? t : t.styleSheet);
	else for (const e of o) {
		const o = document.createElement("style"), n = t$1.litNonce;
		void 0 !== n && o.setAttribute("nonce", n), o.textContent = e.cssText, s.appendChild(o);
	}
};
var c$2 = e$2 ? (t) => t : (t) => t instanceof CSSStyleSheet ? ((t) => {
	let e = "";
	for (const s of t.cssRules) e += s.cssText;
	return r$2(e);
})(t) : t;
// node_modules/@lit/reactive-element/reactive-element.js
/**
* @license
* Copyright 2017 Google LLC
* SPDX-License-Identifier: BSD-3-Clause
*/ var { is: i$2, defineProperty: e$1, getOwnPropertyDescriptor: h$1, getOwnPropertyNames: r$1, getOwnPropertySymbols: o$2, getPrototypeOf: n$1 } = Object, a$1 = globalThis, c$1 = a$1.trustedTypes, l$1 = c$1 ? c$1.emptyScript : "", p$1 = a$1.reactiveElementPolyfillSupport, d$1 = (t, s) => t, u$1 = {
	toAttribute(t, s) {
		switch (s) {
			case Boolean:
				t = t ? l$1 : null;
				break;
			case Object:
			case Array: t = null == t ? t : JSON.stringify(t);
		}
		return t;
	},
	fromAttribute(t, s) {
		let i = t;
		switch (s) {
			case Boolean:
				i = null !== t;
				break;
			case Number:
				i = null === t ? null : Number(t);
				break;
			case Object:
			case Array: try {
				i = JSON.parse(t);
			} catch (t) {
				i = null;
			}
		}
		return i;
	}
}, f$1 = (t, s) => !i$2(t, s), b$1 = {
	attribute: !0,
	type: String,
	converter: u$1,
	reflect: !1,
	useDefault: !1,
	hasChanged: f$1
};
Symbol.metadata ??= Symbol("metadata"), a$1.litPropertyMetadata ??= /* @__PURE__ */ new WeakMap();
var y$1 = class extends HTMLElement {
	static addInitializer(t) {
		this._$Ei(), (this.l ??= []).push(t);
	}
	static get observedAttributes() {
		return this.finalize(), this._$Eh && [...this._$Eh.keys()];
	}
	static createProperty(t, s = b$1) {
		if (s.state && (s.attribute = !1), this._$Ei(), this.prototype.hasOwnProperty(t) && ((s = Object.create(s)).wrapped = !0), this.elementProperties.set(t, s), !s.noAccessor) {
			const i = Symbol(), h = this.getPropertyDescriptor(t, i, s);
			void 0 !== h && e$1(this.prototype, t, h);
		}
	}
	static getPropertyDescriptor(t, s, i) {
		const { get: e, set: r } = h$1(this.prototype, t) ?? {
			get() {
				return this[s];
			},
			set(t) {
				this[s] = t;
			}
		};
		return {
			get: e,
			set(s) {
				const h = e?.call(this);
				r?.call(this, s), this.requestUpdate(t, h, i);
			},
			configurable: !0,
			enumerable: !0
		};
	}
	static getPropertyOptions(t) {
		return this.elementProperties.get(t) ?? b$1;
	}
	static _$Ei() {
		if (this.hasOwnProperty(d$1("elementProperties"))) return;
		const t = n$1(this);
		t.finalize(), void 0 !== t.l && (this.l = [...t.l]), this.elementProperties = new Map(t.elementProperties);
	}
	static finalize() {
		if (this.hasOwnProperty(d$1("finalized"))) return;
		if (this.finalized = !0, this._$Ei(), this.hasOwnProperty(d$1("properties"))) {
			const t = this.properties, s = [...r$1(t), ...o$2(t)];
			for (const i of s) this.createProperty(i, t[i]);
		}
		const t = this[Symbol.metadata];
		if (null !== t) {
			const s = litPropertyMetadata.get(t);
			if (void 0 !== s) for (const [t, i] of s) this.elementProperties.set(t, i);
		}
		this._$Eh = /* @__PURE__ */ new Map();
		for (const [t, s] of this.elementProperties) {
			const i = this._$Eu(t, s);
			void 0 !== i && this._$Eh.set(i, t);
		}
		this.elementStyles = this.finalizeStyles(this.styles);
	}
	static finalizeStyles(s) {
		const i = [];
		if (Array.isArray(s)) {
			const e = new Set(s.flat(1 / 0).reverse());
			for (const s of e) i.unshift(c$2(s));
		} else void 0 !== s && i.push(c$2(s));
		return i;
	}
	static _$Eu(t, s) {
		const i = s.attribute;
		return !1 === i ? void 0 : "string" == typeof i ? i : "string" == typeof t ? t.toLowerCase() : void 0;
	}
	constructor() {
		super(), this._$Ep = void 0, this.isUpdatePending = !1, this.hasUpdated = !1, this._$Em = null, this._$Ev();
	}
	_$Ev() {
		this._$ES = new Promise((t) => this.enableUpdating = t), this._$AL = /* @__PURE__ */ new Map(), this._$E_(), this.requestUpdate(), this.constructor.l?.forEach((t) => t(this));
	}
	addController(t) {
		(this._$EO ??= /* @__PURE__ */ new Set()).add(t), void 0 !== this.renderRoot && this.isConnected && t.hostConnected?.();
	}
	removeController(t) {
		this._$EO?.delete(t);
	}
	_$E_() {
		const t = /* @__PURE__ */ new Map(), s = this.constructor.elementProperties;
		for (const i of s.keys()) this.hasOwnProperty(i) && (t.set(i, this[i]), delete this[i]);
		t.size > 0 && (this._$Ep = t);
	}
	createRenderRoot() {
		const t = this.shadowRoot ?? this.attachShadow(this.constructor.shadowRootOptions);
		return S$1(t, this.constructor.elementStyles), t;
	}
	connectedCallback() {
		this.renderRoot ??= this.createRenderRoot(), this.enableUpdating(!0), this._$EO?.forEach((t) => t.hostConnected?.());
	}
	enableUpdating(t) {}
	disconnectedCallback() {
		this._$EO?.forEach((t) => t.hostDisconnected?.());
	}
	attributeChangedCallback(t, s, i) {
		this._$AK(t, i);
	}
	_$ET(t, s) {
		const i = this.constructor.elementProperties.get(t), e = this.constructor._$Eu(t, i);
		if (void 0 !== e && !0 === i.reflect) {
			const h = (void 0 !== i.converter?.toAttribute ? i.converter : u$1).toAttribute(s, i.type);
			this._$Em = t, null == h ? this.removeAttribute(e) : this.setAttribute(e, h), this._$Em = null;
		}
	}
	_$AK(t, s) {
		const i = this.constructor, e = i._$Eh.get(t);
		if (void 0 !== e && this._$Em !== e) {
			const t = i.getPropertyOptions(e), h = "function" == typeof t.converter ? { fromAttribute: t.converter } : void 0 !== t.converter?.fromAttribute ? t.converter : u$1;
			this._$Em = e;
			const r = h.fromAttribute(s, t.type);
			this[e] = r ?? this._$Ej?.get(e) ?? r, this._$Em = null;
		}
	}
	requestUpdate(t, s, i, e = !1, h) {
		if (void 0 !== t) {
			const r = this.constructor;
			if (!1 === e && (h = this[t]), i ??= r.getPropertyOptions(t), !((i.hasChanged ?? f$1)(h, s) || i.useDefault && i.reflect && h === this._$Ej?.get(t) && !this.hasAttribute(r._$Eu(t, i)))) return;
			this.C(t, s, i);
		}
		!1 === this.isUpdatePending && (this._$ES = this._$EP());
	}
	C(t, s, { useDefault: i, reflect: e, wrapped: h }, r) {
		i && !(this._$Ej ??= /* @__PURE__ */ new Map()).has(t) && (this._$Ej.set(t, r ?? s ?? this[t]), !0 !== h || void 0 !== r) || (this._$AL.has(t) || (this.hasUpdated || i || (s = void 0), this._$AL.set(t, s)), !0 === e && this._$Em !== t && (this._$Eq ??= /* @__PURE__ */ new Set()).add(t));
	}
	async _$EP() {
		this.isUpdatePending = !0;
		try {
			await this._$ES;
		} catch (t) {
			Promise.reject(t);
		}
		const t = this.scheduleUpdate();
		return null != t && await t, !this.isUpdatePending;
	}
	scheduleUpdate() {
		return this.performUpdate();
	}
	performUpdate() {
		if (!this.isUpdatePending) return;
		if (!this.hasUpdated) {
			if (this.renderRoot ??= this.createRenderRoot(), this._$Ep) {
				for (const [t, s] of this._$Ep) this[t] = s;
				this._$Ep = void 0;
			}
			const t = this.constructor.elementProperties;
			if (t.size > 0) for (const [s, i] of t) {
				const { wrapped: t } = i, e = this[s];
				!0 !== t || this._$AL.has(s) || void 0 === e || this.C(s, void 0, i, e);
			}
		}
		let t = !1;
		const s = this._$AL;
		try {
			t = this.shouldUpdate(s), t ? (this.willUpdate(s), this._$EO?.forEach((t) => t.hostUpdate?.()), this.update(s)) : this._$EM();
		} catch (s) {
			throw t = !1, this._$EM(), s;
		}
		t && this._$AE(s);
	}
	willUpdate(t) {}
	_$AE(t) {
		this._$EO?.forEach((t) => t.hostUpdated?.()), this.hasUpdated || (this.hasUpdated = !0, this.firstUpdated(t)), this.updated(t);
	}
	_$EM() {
		this._$AL = /* @__PURE__ */ new Map(), this.isUpdatePending = !1;
	}
	get updateComplete() {
		return this.getUpdateComplete();
	}
	getUpdateComplete() {
		return this._$ES;
	}
	shouldUpdate(t) {
		return !0;
	}
	update(t) {
		this._$Eq &&= this._$Eq.forEach((t) => this._$ET(t, this[t])), this._$EM();
	}
	updated(t) {}
	firstUpdated(t) {}
};
y$1.elementStyles = [], y$1.shadowRootOptions = { mode: "open" }, y$1[d$1("elementProperties")] = /* @__PURE__ */ new Map(), y$1[d$1("finalized")] = /* @__PURE__ */ new Map(), p$1?.({ ReactiveElement: y$1 }), (a$1.reactiveElementVersions ??= []).push("2.1.2");
// node_modules/lit-html/lit-html.js
/**
* @license
* Copyright 2017 Google LLC
* SPDX-License-Identifier: BSD-3-Clause
*/
var t = globalThis;
var i$1 = (t) => t;
var s$1 = t.trustedTypes;
var e = s$1 ? s$1.createPolicy("lit-html", { createHTML: (t) => t }) : void 0;
var h = "$lit$";
var o$1 = `lit$${Math.random().toFixed(9).slice(2)}$`;
var n = "?" + o$1;
var r = `<${n}>`;
var l = document;
var c = () => l.createComment("");
var a = (t) => null === t || "object" != typeof t && "function" != typeof t;
var u = Array.isArray;
var d = (t) => u(t) || "function" == typeof t?.[Symbol.iterator];
var f = "[ 	\n\f\r]";
var v = /<(?:(!--|\/[^a-zA-Z])|(\/?[a-zA-Z][^>\s]*)|(\/?$))/g;
var _ = /-->/g;
var m = />/g;
var p = RegExp(`>|${f}(?:([^\\s"'>=/]+)(${f}*=${f}*(?:[^ \t\n\f\r"'\`<>=]|("|')|))|$)`, "g");
var g = /'/g;
var $ = /"/g;
var y = /^(?:script|style|textarea|title)$/i;
var x = (t) => (i, ...s) => ({
	_$litType$: t,
	strings: i,
	values: s
});
var b = x(1);
var E = Symbol.for("lit-noChange");
var A = Symbol.for("lit-nothing");
var C = /* @__PURE__ */ new WeakMap();
var P = l.createTreeWalker(l, 129);
function V(t, i) {
	if (!u(t) || !t.hasOwnProperty("raw")) throw Error("invalid template strings array");
	return void 0 !== e ? e.createHTML(i) : i;
}
var N = (t, i) => {
	const s = t.length - 1, e = [];
	let n, l = 2 === i ? "<svg>" : 3 === i ? "<math>" : "", c = v;
	for (let i = 0; i < s; i++) {
		const s = t[i];
		let a, u, d = -1, f = 0;
		for (; f < s.length && (c.lastIndex = f, u = c.exec(s), null !== u);) f = c.lastIndex, c === v ? "!--" === u[1] ? c = _ : void 0 !== u[1] ? c = m : void 0 !== u[2] ? (y.test(u[2]) && (n = RegExp("</" + u[2], "g")), c = p) : void 0 !== u[3] && (c = p) : c === p ? ">" === u[0] ? (c = n ?? v, d = -1) : void 0 === u[1] ? d = -2 : (d = c.lastIndex - u[2].length, a = u[1], c = void 0 === u[3] ? p : "\"" === u[3] ? $ : g) : c === $ || c === g ? c = p : c === _ || c === m ? c = v : (c = p, n = void 0);
		const x = c === p && t[i + 1].startsWith("/>") ? " " : "";
		l += c === v ? s + r : d >= 0 ? (e.push(a), s.slice(0, d) + h + s.slice(d) + o$1 + x) : s + o$1 + (-2 === d ? i : x);
	}
	return [V(t, l + (t[s] || "<?>") + (2 === i ? "</svg>" : 3 === i ? "</math>" : "")), e];
};
var S = class S {
	constructor({ strings: t, _$litType$: i }, e) {
		let r;
		this.parts = [];
		let l = 0, a = 0;
		const u = t.length - 1, d = this.parts, [f, v] = N(t, i);
		if (this.el = S.createElement(f, e), P.currentNode = this.el.content, 2 === i || 3 === i) {
			const t = this.el.content.firstChild;
			t.replaceWith(...t.childNodes);
		}
		for (; null !== (r = P.nextNode()) && d.length < u;) {
			if (1 === r.nodeType) {
				if (r.hasAttributes()) for (const t of r.getAttributeNames()) if (t.endsWith(h)) {
					const i = v[a++], s = r.getAttribute(t).split(o$1), e = /([.?@])?(.*)/.exec(i);
					d.push({
						type: 1,
						index: l,
						name: e[2],
						strings: s,
						ctor: "." === e[1] ? I : "?" === e[1] ? L : "@" === e[1] ? z : H
					}), r.removeAttribute(t);
				} else t.startsWith(o$1) && (d.push({
					type: 6,
					index: l
				}), r.removeAttribute(t));
				if (y.test(r.tagName)) {
					const t = r.textContent.split(o$1), i = t.length - 1;
					if (i > 0) {
						r.textContent = s$1 ? s$1.emptyScript : "";
						for (let s = 0; s < i; s++) r.append(t[s], c()), P.nextNode(), d.push({
							type: 2,
							index: ++l
						});
						r.append(t[i], c());
					}
				}
			} else if (8 === r.nodeType) if (r.data === n) d.push({
				type: 2,
				index: l
			});
			else {
				let t = -1;
				for (; -1 !== (t = r.data.indexOf(o$1, t + 1));) d.push({
					type: 7,
					index: l
				}), t += o$1.length - 1;
			}
			l++;
		}
	}
	static createElement(t, i) {
		const s = l.createElement("template");
		return s.innerHTML = t, s;
	}
};
function M(t, i, s = t, e) {
	if (i === E) return i;
	let h = void 0 !== e ? s._$Co?.[e] : s._$Cl;
	const o = a(i) ? void 0 : i._$litDirective$;
	return h?.constructor !== o && (h?._$AO?.(!1), void 0 === o ? h = void 0 : (h = new o(t), h._$AT(t, s, e)), void 0 !== e ? (s._$Co ??= [])[e] = h : s._$Cl = h), void 0 !== h && (i = M(t, h._$AS(t, i.values), h, e)), i;
}
var R = class {
	constructor(t, i) {
		this._$AV = [], this._$AN = void 0, this._$AD = t, this._$AM = i;
	}
	get parentNode() {
		return this._$AM.parentNode;
	}
	get _$AU() {
		return this._$AM._$AU;
	}
	u(t) {
		const { el: { content: i }, parts: s } = this._$AD, e = (t?.creationScope ?? l).importNode(i, !0);
		P.currentNode = e;
		let h = P.nextNode(), o = 0, n = 0, r = s[0];
		for (; void 0 !== r;) {
			if (o === r.index) {
				let i;
				2 === r.type ? i = new k(h, h.nextSibling, this, t) : 1 === r.type ? i = new r.ctor(h, r.name, r.strings, this, t) : 6 === r.type && (i = new Z(h, this, t)), this._$AV.push(i), r = s[++n];
			}
			o !== r?.index && (h = P.nextNode(), o++);
		}
		return P.currentNode = l, e;
	}
	p(t) {
		let i = 0;
		for (const s of this._$AV) void 0 !== s && (void 0 !== s.strings ? (s._$AI(t, s, i), i += s.strings.length - 2) : s._$AI(t[i])), i++;
	}
};
var k = class k {
	get _$AU() {
		return this._$AM?._$AU ?? this._$Cv;
	}
	constructor(t, i, s, e) {
		this.type = 2, this._$AH = A, this._$AN = void 0, this._$AA = t, this._$AB = i, this._$AM = s, this.options = e, this._$Cv = e?.isConnected ?? !0;
	}
	get parentNode() {
		let t = this._$AA.parentNode;
		const i = this._$AM;
		return void 0 !== i && 11 === t?.nodeType && (t = i.parentNode), t;
	}
	get startNode() {
		return this._$AA;
	}
	get endNode() {
		return this._$AB;
	}
	_$AI(t, i = this) {
		t = M(this, t, i), a(t) ? t === A || null == t || "" === t ? (this._$AH !== A && this._$AR(), this._$AH = A) : t !== this._$AH && t !== E && this._(t) : void 0 !== t._$litType$ ? this.$(t) : void 0 !== t.nodeType ? this.T(t) : d(t) ? this.k(t) : this._(t);
	}
	O(t) {
		return this._$AA.parentNode.insertBefore(t, this._$AB);
	}
	T(t) {
		this._$AH !== t && (this._$AR(), this._$AH = this.O(t));
	}
	_(t) {
		this._$AH !== A && a(this._$AH) ? this._$AA.nextSibling.data = t : this.T(l.createTextNode(t)), this._$AH = t;
	}
	$(t) {
		const { values: i, _$litType$: s } = t, e = "number" == typeof s ? this._$AC(t) : (void 0 === s.el && (s.el = S.createElement(V(s.h, s.h[0]), this.options)), s);
		if (this._$AH?._$AD === e) this._$AH.p(i);
		else {
			const t = new R(e, this), s = t.u(this.options);
			t.p(i), this.T(s), this._$AH = t;
		}
	}
	_$AC(t) {
		let i = C.get(t.strings);
		return void 0 === i && C.set(t.strings, i = new S(t)), i;
	}
	k(t) {
		u(this._$AH) || (this._$AH = [], this._$AR());
		const i = this._$AH;
		let s, e = 0;
		for (const h of t) e === i.length ? i.push(s = new k(this.O(c()), this.O(c()), this, this.options)) : s = i[e], s._$AI(h), e++;
		e < i.length && (this._$AR(s && s._$AB.nextSibling, e), i.length = e);
	}
	_$AR(t = this._$AA.nextSibling, s) {
		for (this._$AP?.(!1, !0, s); t !== this._$AB;) {
			const s = i$1(t).nextSibling;
			i$1(t).remove(), t = s;
		}
	}
	setConnected(t) {
		void 0 === this._$AM && (this._$Cv = t, this._$AP?.(t));
	}
};
var H = class {
	get tagName() {
		return this.element.tagName;
	}
	get _$AU() {
		return this._$AM._$AU;
	}
	constructor(t, i, s, e, h) {
		this.type = 1, this._$AH = A, this._$AN = void 0, this.element = t, this.name = i, this._$AM = e, this.options = h, s.length > 2 || "" !== s[0] || "" !== s[1] ? (this._$AH = Array(s.length - 1).fill(/* @__PURE__ */ new String()), this.strings = s) : this._$AH = A;
	}
	_$AI(t, i = this, s, e) {
		const h = this.strings;
		let o = !1;
		if (void 0 === h) t = M(this, t, i, 0), o = !a(t) || t !== this._$AH && t !== E, o && (this._$AH = t);
		else {
			const e = t;
			let n, r;
			for (t = h[0], n = 0; n < h.length - 1; n++) r = M(this, e[s + n], i, n), r === E && (r = this._$AH[n]), o ||= !a(r) || r !== this._$AH[n], r === A ? t = A : t !== A && (t += (r ?? "") + h[n + 1]), this._$AH[n] = r;
		}
		o && !e && this.j(t);
	}
	j(t) {
		t === A ? this.element.removeAttribute(this.name) : this.element.setAttribute(this.name, t ?? "");
	}
};
var I = class extends H {
	constructor() {
		super(...arguments), this.type = 3;
	}
	j(t) {
		this.element[this.name] = t === A ? void 0 : t;
	}
};
var L = class extends H {
	constructor() {
		super(...arguments), this.type = 4;
	}
	j(t) {
		this.element.toggleAttribute(this.name, !!t && t !== A);
	}
};
var z = class extends H {
	constructor(t, i, s, e, h) {
		super(t, i, s, e, h), this.type = 5;
	}
	_$AI(t, i = this) {
		if ((t = M(this, t, i, 0) ?? A) === E) return;
		const s = this._$AH, e = t === A && s !== A || t.capture !== s.capture || t.once !== s.once || t.passive !== s.passive, h = t !== A && (s === A || e);
		e && this.element.removeEventListener(this.name, this, s), h && this.element.addEventListener(this.name, this, t), this._$AH = t;
	}
	handleEvent(t) {
		"function" == typeof this._$AH ? this._$AH.call(this.options?.host ?? this.element, t) : this._$AH.handleEvent(t);
	}
};
var Z = class {
	constructor(t, i, s) {
		this.element = t, this.type = 6, this._$AN = void 0, this._$AM = i, this.options = s;
	}
	get _$AU() {
		return this._$AM._$AU;
	}
	_$AI(t) {
		M(this, t);
	}
};
var B = t.litHtmlPolyfillSupport;
B?.(S, k), (t.litHtmlVersions ??= []).push("3.3.3");
var D = (t, i, s) => {
	const e = s?.renderBefore ?? i;
	let h = e._$litPart$;
	if (void 0 === h) {
		const t = s?.renderBefore ?? null;
		e._$litPart$ = h = new k(i.insertBefore(c(), t), t, void 0, s ?? {});
	}
	return h._$AI(t), h;
};
// node_modules/lit-element/lit-element.js
/**
* @license
* Copyright 2017 Google LLC
* SPDX-License-Identifier: BSD-3-Clause
*/ var s = globalThis;
var i = class extends y$1 {
	constructor() {
		super(...arguments), this.renderOptions = { host: this }, this._$Do = void 0;
	}
	createRenderRoot() {
		const t = super.createRenderRoot();
		return this.renderOptions.renderBefore ??= t.firstChild, t;
	}
	update(t) {
		const r = this.render();
		this.hasUpdated || (this.renderOptions.isConnected = this.isConnected), super.update(t), this._$Do = D(r, this.renderRoot, this.renderOptions);
	}
	connectedCallback() {
		super.connectedCallback(), this._$Do?.setConnected(!0);
	}
	disconnectedCallback() {
		super.disconnectedCallback(), this._$Do?.setConnected(!1);
	}
	render() {
		return E;
	}
};
i._$litElement$ = !0, i["finalized"] = !0, s.litElementHydrateSupport?.({ LitElement: i });
var o = s.litElementPolyfillSupport;
o?.({ LitElement: i });
(s.litElementVersions ??= []).push("4.2.2");
// src/adjudication.ts
/**
* The part of the panel in which a reviewer makes one label of those of several readers.
*/
function adjudicationPart(session) {
	const { adjudication } = session;
	if (!adjudication) return A;
	const parts = structuresInWords(adjudication);
	return b`
    <section class="conflict" id="adjudication" aria-label="Labels of several readers">
      <p>
        <strong>${agreementInWords(adjudication)}</strong>${parts.length > 1 ? b` (${parts.join(", ")})` : A}
      </p>
      <ul class="findings readings" aria-label="Readers">
        ${adjudication.readings.map((reading) => row(session, reading))}
      </ul>
      <div class="row">
        <button
          id="take-staple"
          title="One label of all, each reader weighed by how well he or she agrees with the others"
          @click=${() => void session.adjudicate({ method: "staple" })}
        >
          STAPLE
        </button>
        <span class="hint">or edit a label, and save it as the consensus</span>
      </div>
    </section>
  `;
}
function row(session, { reader, shown, colour, visible, masks }) {
	const marked = masks.filter((mask) => mask.planes.size).map((mask) => mask.name);
	return b`
    <li class="reading" data-reader=${shown}>
      <div class="row">
        <span class="swatch" style="background: ${css(colour)}"></span>
        <span class="name">${shown}</span>
        <button
          aria-label="${visible ? "Hide" : "Show"} the label of ${shown}"
          @click=${() => session.showReading(reader, !visible)}
        >
          ${visible ? "Hide" : "Show"}
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
          @click=${() => void session.adjudicate({
		method: "reader",
		reader
	})}
        >
          Take ${shown}
        </button>
      </div>
      <p class="facts">${marked.join(", ") || "marked nothing"}</p>
    </li>
  `;
}
// src/measure.ts
/**
* Sizes and measurements of findings in units that radiologists use.
*/
function sizeOf(planes, { spacing_mm: spacing }) {
	const areas = [...planes.values()].map(area);
	const pixels = areas.reduce((sum, each) => sum + each, 0);
	return {
		pixels,
		planes: areas.filter((each) => each > 0).length,
		volume_ml: spacing?.[0] ? pixels * spacing[0] * spacing[1] * spacing[2] / 1e3 : null,
		area_mm2: spacing ? pixels * spacing[1] * spacing[2] : null
	};
}
function figures(value) {
	const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
	return value.toFixed(digits).replace("-", "−");
}
/** Return a size in words: volume for volumes, area for single planes, pixels where the image has no spacing. */
function inWords(size, isVolume) {
	if (!size.pixels) return "empty";
	if (size.area_mm2 === null) return `${size.pixels} pixels`;
	return isVolume && size.volume_ml !== null ? `${figures(size.volume_ml)} mL` : `${figures(size.area_mm2)} mm\u00b2`;
}
/** Return the axes, the values and the number of parts in words; empty for an empty finding. */
function measuredInWords({ long_axis: long, short_axis: short, values, n_components: parts }) {
	if (!long || !short) return "";
	const lengths = long.length_mm !== null && short.length_mm !== null ? `${figures(long.length_mm)} \u00d7 ${figures(short.length_mm)} mm` : `${figures(long.length_pixels)} \u00d7 ${figures(short.length_pixels)} pixels`;
	const unit = values?.unit === "HU" ? " HU" : "";
	return [
		lengths,
		values ? `${figures(values.mean)} \u00b1 ${figures(values.sd)}${unit}` : "",
		parts === 1 ? "1 part" : `${parts} parts`
	].filter(Boolean).join(" · ");
}
/** Return what the figures of `measuredInWords` are, for who does not know. */
function measuredAtLength({ long_axis: long, values }) {
	return `Longest diameter${long ? ` on plane ${long.plane + 1}` : ""} \u00d7 the longest one across it${values ? `; mean \u00b1 standard deviation${values.unit === "HU" ? "" : " of the stored values"}, from ${figures(values.minimum)} to ${figures(values.maximum)}` : ""}; connected parts`;
}
// src/shortcuts.ts
var tool = (chosen) => (session) => session.setTool(chosen);
var panel = (name) => (session) => session.dispatchEvent(new Event(name));
/** `keys` is a key's name, after "Ctrl+" or "Ctrl+Shift+" where these are held; Cmd counts as Ctrl. */
var SHORTCUTS = [
	{
		keys: "t",
		what: "Go to the text field",
		run: panel("focus-text")
	},
	{
		keys: "p",
		what: "Click: in the finding",
		run: tool("positive")
	},
	{
		keys: "n",
		what: "Click: not in the finding",
		run: tool("negative")
	},
	{
		keys: "o",
		what: "Box around the finding",
		run: tool("box")
	},
	{
		keys: "s",
		what: "Scribble in the finding (with Alt: outside)",
		run: tool("scribble")
	},
	{
		keys: "b",
		what: "Brush",
		run: tool("brush")
	},
	{
		keys: "e",
		what: "Eraser",
		run: tool("eraser")
	},
	{
		keys: "Escape",
		what: "Back to looking; cancels what runs",
		run: (session) => {
			if (session.work) session.cancel();
			else session.setTool("navigate");
		}
	},
	{
		keys: "[",
		what: "Smaller brush",
		run: (session) => resize(session, .8)
	},
	{
		keys: "]",
		what: "Larger brush",
		run: (session) => resize(session, 1.25)
	},
	{
		keys: "g",
		what: "Carry the finding through the volume",
		run: (session) => void session.refine({}, true)
	},
	{
		keys: "h",
		what: "Hide and show all masks",
		run: (session) => {
			session.hidden = !session.hidden;
			session.changed();
		}
	},
	{
		keys: "m",
		what: "Saliency map",
		run: (session) => session.toggleMap("saliency")
	},
	{
		keys: "u",
		what: "Uncertainty of the network",
		run: (session) => session.toggleMap("uncertainty")
	},
	{
		keys: "a",
		what: "Axes: the longest diameter and the one across it",
		run: (session) => session.toggleAxes()
	},
	{
		keys: "1 to 9",
		what: "Choose a finding",
		run: () => void 0
	},
	{
		keys: "Delete",
		what: "Clear the finding",
		run: (session) => {
			if (session.active !== null) session.clear(session.active);
		}
	},
	{
		keys: "Ctrl+z",
		what: "Undo",
		run: (session) => session.undo()
	},
	{
		keys: "Ctrl+y",
		what: "Redo",
		run: (session) => session.redo()
	},
	{
		keys: "Ctrl+Shift+z",
		what: "Redo",
		run: (session) => session.redo()
	},
	{
		keys: "Ctrl+s",
		what: "Save",
		anywhere: true,
		run: (session) => void session.save()
	},
	{
		keys: "Ctrl+Shift+s",
		what: "Save as new",
		anywhere: true,
		run: (session) => void session.save(true)
	},
	{
		keys: ".",
		what: "Next sample",
		run: panel("next-sample")
	},
	{
		keys: "?",
		what: "Show these keys",
		run: panel("toggle-keys")
	}
];
function resize(session, factor) {
	session.brush = Math.min(200, Math.max(1, Math.round(session.brush * factor * 2) / 2));
	session.changed();
}
function keysOf(event) {
	const held = event.ctrlKey || event.metaKey;
	const key = event.key.length === 1 ? event.key.toLowerCase() : event.key === "Backspace" ? "Delete" : event.key;
	return `${held ? "Ctrl+" : ""}${held && event.shiftKey ? "Shift+" : ""}${key}`;
}
function isTyping(event) {
	const [target] = event.composedPath();
	return target instanceof HTMLInputElement && ![
		"checkbox",
		"radio",
		"range",
		"button"
	].includes(target.type) || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement || target instanceof HTMLElement && target.isContentEditable;
}
var Shortcuts = class {
	constructor(session) {
		this.session = session;
		this.listener = (event) => {
			if (event.altKey || event.isComposing) return;
			const keys = keysOf(event);
			const typing = isTyping(event);
			const found = SHORTCUTS.find((each) => each.keys === keys && (!typing || each.anywhere));
			const [target] = event.composedPath();
			if (keys === "Escape" && target instanceof HTMLInputElement) return;
			if (found) found.run(this.session, event);
			else if (!typing && /^[1-9]$/.test(keys)) {
				const finding = this.session.findings[Number(keys) - 1];
				if (finding) this.session.select(finding.id);
			} else return;
			event.preventDefault();
			event.stopPropagation();
		};
	}
	start() {
		document.addEventListener("keydown", this.listener, { capture: true });
	}
	stop() {
		document.removeEventListener("keydown", this.listener, { capture: true });
	}
};
// src/style.ts
/** The panel's looks, in OHIF's dark colours. */
var STYLE = i$3`
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
// src/panel.ts
/**
* The panel at the viewer's right side, a web component.
*/
var PANEL_TAG = "medclipsam-panel";
var SUGGEST_DELAY = 120;
var TOOLS = [
	{
		tool: "navigate",
		label: "Look",
		title: "Look: window, zoom and scroll (Esc)"
	},
	{
		tool: "positive",
		label: "+ Click",
		title: "Click what belongs to the finding (P)"
	},
	{
		tool: "negative",
		label: "− Click",
		title: "Click what does not belong to the finding (N)"
	},
	{
		tool: "box",
		label: "Box",
		title: "Draw a box around the finding (O)"
	},
	{
		tool: "scribble",
		label: "Scribble",
		title: "Scribble in the finding; with Alt outside of it (S)"
	},
	{
		tool: "brush",
		label: "Brush",
		title: "Paint the finding (B)"
	},
	{
		tool: "eraser",
		label: "Eraser",
		title: "Erase from the finding (E)"
	}
];
/** Return the part of a text that is typed now: what follows the last semicolon. */
var lastTarget = (text) => text.slice(text.lastIndexOf(";") + 1).trimStart();
/** Put a suggestion in the place of the target that is typed now. */
function completed(text, suggestion) {
	const before = text.slice(0, text.lastIndexOf(";") + 1);
	return before ? `${before} ${suggestion}` : suggestion;
}
/** Return an image's name; one that is a DICOM UID says nothing to people. */
var title = ({ name, modality }) => /^[\d.]{20,}$/.test(name) ? `${modality ?? "An"} image` : name;
/** Return who it was; without log-in the server knows a browser's number alone, which says nothing to people. */
var person = (by) => !by || by.startsWith("browser-") ? "Somebody else" : by;
/** Return what has made a finding, and whether somebody has changed it since. */
function madeBy({ source, edited, evidence, planes }) {
	const unsure = evidence?.uncertaintyScore;
	return [{
		text: "by text",
		network: [`by ${evidence?.network ?? "a network"}`, typeof unsure === "number" && planes.size ? `uncertainty ${unsure.toFixed(2)}` : ""],
		clicks: "by clicks",
		hand: planes.size ? "by hand" : ""
	}[source], edited && source !== "hand" && source !== "clicks" ? "corrected" : ""].flat().filter(Boolean).join(", ");
}
function aboutNetwork(network) {
	const { labels, metrics, modality, status, reason } = network;
	const name = called(network);
	const finds = `${name[0]?.toUpperCase() ?? ""}${name.slice(1)} finds ${Object.keys(labels).join(", ")}`;
	const { child, n } = metrics.verdict ?? { n: 0 };
	const score = typeof child === "number" ? `; Dice ${child.toFixed(2)} on ${plural(n, "validation image")}` : "";
	const doubt = status === "unvalidated" ? ` It has not been validated: ${reason}` : "";
	return `${finds}${modality ? ` in ${modality}` : ""}${score}.${doubt}`;
}
var plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
var Panel = class Panel extends i {
	constructor(..._args) {
		super(..._args);
		this.session = Panel.session;
		this.text = this.session.lastText;
		this.suggestions = [];
		this.chosen = -1;
		this.showKeys = false;
		this.rejecting = false;
		this.leaving = false;
		this.sizes = /* @__PURE__ */ new WeakMap();
		this.listeners = new AbortController();
	}
	static {
		this.styles = STYLE;
	}
	connectedCallback() {
		super.connectedCallback();
		const { signal } = this.listeners;
		const { session } = this;
		session.addEventListener("change", () => this.requestUpdate(), { signal });
		session.addEventListener("focus-text", () => this.focusText(), { signal });
		session.addEventListener("next-sample", () => void this.next(), { signal });
		session.addEventListener("toggle-keys", () => {
			this.showKeys = !this.showKeys;
			this.requestUpdate();
		}, { signal });
		for (const type of [
			"keydown",
			"keyup",
			"keypress"
		]) this.addEventListener(type, (event) => event.stopPropagation(), { signal });
		window.addEventListener("beforeunload", (event) => {
			if (session.draftState === "waiting" || session.draftState === "keeping" || session.draftState === "failed") {
				session.flush();
				event.preventDefault();
			}
		}, { signal });
	}
	disconnectedCallback() {
		super.disconnectedCallback();
		this.listeners.abort();
	}
	firstUpdated() {
		this.focusText();
	}
	get input() {
		return this.renderRoot.querySelector("#text");
	}
	focusText() {
		if (this.session.model === "network") {
			this.choose("text");
			return;
		}
		this.input?.focus();
		this.input?.select();
	}
	/** Choose what makes the mask, and go where it is started. */
	choose(model) {
		this.session.model = model;
		this.session.changed();
		this.updateComplete.then(() => {
			if (model === "text") this.focusText();
			else this.renderRoot.querySelector("#run")?.focus();
		});
	}
	typed(event) {
		this.text = event.target.value;
		this.chosen = -1;
		clearTimeout(this.timer);
		this.timer = setTimeout(() => void this.suggest(), SUGGEST_DELAY);
		this.requestUpdate();
	}
	async suggest() {
		const typed = lastTarget(this.text);
		if (!typed) this.suggestions = [];
		else try {
			const modality = this.session.image?.modality ?? "";
			const found = await this.session.api.suggestions(typed, modality);
			if (lastTarget(this.text) !== typed || this.renderRoot.querySelector(":focus")?.id !== "text") return;
			this.suggestions = found.filter((each) => each.name !== typed);
		} catch (error) {
			this.suggestions = [];
			this.session.fail(error);
		}
		this.requestUpdate();
	}
	pick(suggestion) {
		this.text = completed(this.text, suggestion.name);
		this.closeSuggestions();
		this.input?.focus();
	}
	closeSuggestions() {
		clearTimeout(this.timer);
		this.suggestions = [];
		this.chosen = -1;
		this.requestUpdate();
	}
	keyed(event) {
		const count = this.suggestions.length;
		if (event.key === "ArrowDown" && count) this.chosen = (this.chosen + 1) % count;
		else if (event.key === "ArrowUp" && count) this.chosen = (this.chosen + count) % (count + 1) === count ? -1 : (this.chosen + count) % (count + 1);
		else if (event.key === "Tab" && count && !event.shiftKey) {
			const picked = this.suggestions[Math.max(0, this.chosen)];
			if (picked) this.pick(picked);
		} else if (event.key === "Enter") {
			const picked = this.suggestions[this.chosen];
			if (picked) this.pick(picked);
			else this.run();
		} else if (event.key === "Escape") {
			if (count) this.closeSuggestions();
			else if (this.session.work) this.session.cancel();
			else this.input?.blur();
		} else return;
		event.preventDefault();
		this.requestUpdate();
	}
	run(text = this.text) {
		this.text = text;
		this.closeSuggestions();
		this.session.run(text);
	}
	async next(sure = false, strategy) {
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
	sizeInWords(finding) {
		const { image, plane, isVolume } = this.session;
		const count = image?.planes.length ?? 1;
		const whole = this.sizeOf(finding);
		if (!image || isVolume || count === 1 || !whole.pixels) return inWords(whole, isVolume);
		const here = finding.planes.get(plane ?? -1);
		return `${here ? inWords(sizeOf(/* @__PURE__ */ new Map([[0, here]]), image), false) : "none on this frame"}; on ${whole.planes} of ${count} frames`;
	}
	sizeOf(finding) {
		let size = this.sizes.get(finding.planes);
		const { image } = this.session;
		if (!size && image) {
			size = sizeOf(finding.planes, image);
			this.sizes.set(finding.planes, size);
		}
		return size ?? {
			pixels: 0,
			planes: 0,
			volume_ml: null,
			area_mm2: null
		};
	}
	render() {
		const { session } = this;
		return b`
      <section class="panel" aria-label="Annotate by text" aria-busy=${session.opening ? "true" : "false"}>
        ${this.head()} ${this.showKeys ? this.keys() : A} ${this.ask()}
        <div class="now">
          <div class="messages" role="status" aria-live="polite">${session.work ? A : this.messages()}</div>
          ${session.work ? this.progress() : A}
        </div>
        ${this.conflict()} ${adjudicationPart(session)} ${this.tools()} ${this.list()} ${this.looks()}
        ${this.foot()}
      </section>
    `;
	}
	head() {
		const { image, state, savedBy } = this.session;
		const count = image?.planes.length ?? 1;
		const planes = count > 1 ? `${count} ${this.session.isVolume ? "planes" : "frames"}` : "";
		const until = image?.lease?.until;
		const lease = until ? `kept for you until ${new Date(until).toLocaleTimeString()}` : "";
		const about = [
			image?.modality,
			planes,
			lease,
			savedBy === null ? "" : "labelled"
		];
		return b`
      <header>
        <div class="image">
          <h2>${image ? title(image) : "No image"}</h2>
          <p>${image ? about.filter(Boolean).join(" · ") : "Open a series at the left."}</p>
        </div>
        <button
          class="quiet"
          title="Keys (?)"
          aria-label="Keys"
          aria-expanded=${this.showKeys ? "true" : "false"}
          @click=${() => this.session.dispatchEvent(new Event("toggle-keys"))}
        >
          ?
        </button>
        ${state?.sentence ? b`<p class="state" title="Rounds and training">${state.sentence}</p>` : A}
      </header>
    `;
	}
	ask() {
		const { session } = this;
		const byText = session.model === "text";
		const recent = session.recent.filter((each) => each !== this.text).slice(0, 4);
		return b`
      <div class="ask">
        <div class="choice" role="radiogroup" aria-label="What makes the mask">
          ${["text", "network"].map((model) => b`
              <label class=${session.model === model ? "on" : ""}>
                <input
                  type="radio"
                  name="model"
                  .checked=${session.model === model}
                  ?disabled=${model === "network" && !session.hasNetwork}
                  @change=${() => this.choose(model)}
                />
                ${model === "text" ? "By text" : "By the trained network"}
              </label>
            `)}
        </div>
        ${!session.hasNetwork && session.info ? b`<p class="hint">No network has been trained on these studies yet.</p>` : A}
        ${byText ? this.field() : this.network()}
        ${byText && recent.length ? b`<div class="recent">
              <span>Recent</span>
              ${recent.map((each) => b`<button class="chip" title="Run: ${each}" @click=${() => this.run(each)}>${each}</button>`)}
            </div>` : A}
      </div>
    `;
	}
	network() {
		const { session } = this;
		const { chosenNetwork: network, networkNames: names } = session;
		return b`
      <div class="row field">
        ${names.length > 1 ? b`<select
              id="network"
              aria-label="Network"
              @change=${(event) => {
			session.network = event.target.value;
			session.changed();
		}}
            >
              ${names.map((name) => b`<option value=${name} ?selected=${name === session.network}>${name}</option>`)}
            </select>` : A}
        <p class="about">${network ? aboutNetwork(network) : A}</p>
        <button class="main" id="run" ?disabled=${!session.image || session.work !== null} @click=${() => this.run()}>
          Run
        </button>
      </div>
    `;
	}
	field() {
		const { session } = this;
		const open = this.suggestions.length > 0;
		return b`
        <div class="row field">
          <input
            id="text"
            type="text"
            role="combobox"
            aria-label="What to look for"
            aria-autocomplete="list"
            aria-expanded=${open ? "true" : "false"}
            aria-controls="suggestions"
            aria-activedescendant=${this.chosen >= 0 ? `suggestion-${this.chosen}` : A}
            placeholder="What to look for: left lung; heart"
            autocomplete="off"
            spellcheck="false"
            maxlength="1000"
            .value=${this.text}
            @input=${(event) => this.typed(event)}
            @keydown=${(event) => this.keyed(event)}
            @blur=${() => setTimeout(() => this.closeSuggestions(), 150)}
          />
          <button class="main" id="run" ?disabled=${!session.image || session.work !== null} @click=${() => this.run()}>
            Find
          </button>
          <ul id="suggestions" role="listbox" aria-label="Known targets" ?hidden=${!open}>
            ${this.suggestions.map((each, k) => b`
                <li
                  id="suggestion-${k}"
                  role="option"
                  aria-selected=${k === this.chosen ? "true" : "false"}
                  class=${k === this.chosen ? "on" : ""}
                  @mousedown=${(event) => {
			event.preventDefault();
			this.pick(each);
		}}
                >
                  ${each.name}${each.text !== each.name ? b` <span>${each.text}</span>` : A}
                </li>
              `)}
          </ul>
        </div>
    `;
	}
	messages() {
		const { down, error, note } = this.session;
		const close = () => {
			this.session.error = this.session.note = null;
			this.session.changed();
		};
		const shut = b`<button class="quiet" aria-label="Dismiss" @click=${close}>×</button>`;
		if (down) return b`<p class="message bad">${down} Your masks stay here; the panel asks again every few seconds.</p>`;
		if (error) return b`<p class="message bad">${error}${shut}</p>`;
		return note ? b`<p class="message">${note}${shut}</p>` : A;
	}
	progress() {
		const { work } = this.session;
		const left = work?.secondsLeft;
		const seconds = left === null || left === void 0 ? "" : `about ${plural(Math.max(1, Math.ceil(left)), "second")} left`;
		const fraction = work?.fraction;
		return b`
      <div class="work">
        <p>${work?.what}</p>
        <progress
          aria-label="Progress"
          max="1"
          .value=${fraction ?? 0}
          class=${fraction === null || fraction === void 0 ? "unknown" : ""}
        ></progress>
        <div class="row">
          <span>${[work?.message, seconds].filter(Boolean).join(" · ")}</span>
          <button ?disabled=${work?.cancelled ?? true} @click=${() => void this.session.cancel()}>Cancel (Esc)</button>
        </div>
      </div>
    `;
	}
	conflict() {
		const { theirs, otherDraft, asksEmpty } = this.session;
		if (theirs) {
			const { by, at } = theirs.saved;
			const when = at ? ` at ${new Date(at).toLocaleTimeString()}` : "";
			return b`
        <div class="conflict" role="alert">
          <p>
            ${person(by)} saved a label of this image${when} while you worked. Theirs has
            ${theirs.findings.map((each) => each.name).join(", ") || "no finding"}; its outlines are drawn in pink.
          </p>
          <button @click=${() => void this.session.settle("mine")}>Replace with mine</button>
          <button @click=${() => void this.session.settle("theirs")}>Go on with theirs</button>
          <button @click=${() => void this.session.settle("both")}>Save mine as new</button>
        </div>
      `;
		}
		if (asksEmpty) return b`
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
		if (otherDraft) return b`
        <div class="conflict" role="alert">
          <p>You changed this image in another window too.</p>
          <button @click=${() => void this.session.settleDraft("mine")}>Keep this window's</button>
          <button @click=${() => void this.session.settleDraft("theirs")}>Take the other's</button>
        </div>
      `;
		return A;
	}
	tools() {
		const { session } = this;
		const painting = session.tool === "brush" || session.tool === "eraser";
		const { undoable, redoable } = session.history;
		return b`
      <div class="tools" role="toolbar" aria-label="Tools">
        ${TOOLS.map(({ tool, label, title }) => b`
            <button
              title=${title}
              data-tool=${tool}
              class=${session.tool === tool ? "on" : ""}
              aria-pressed=${session.tool === tool ? "true" : "false"}
              ?disabled=${!session.image}
              @click=${() => session.setTool(tool)}
            >
              ${label}
            </button>
          `)}
        <button id="undo" title="Undo ${undoable ?? ""} (Ctrl+Z)" ?disabled=${undoable === void 0} @click=${() => session.undo()}>
          Undo
        </button>
        <button id="redo" title="Redo ${redoable ?? ""} (Ctrl+Y)" ?disabled=${redoable === void 0} @click=${() => session.redo()}>
          Redo
        </button>
        ${session.canPropagate ? b`<button
              id="propagate"
              title="Carry the chosen finding from here through all planes (G)"
              ?disabled=${!session.activeFinding?.planes.size || session.work !== null}
              @click=${() => void session.refine({}, true)}
            >
              Propagate
            </button>` : A}
        ${painting ? b`<label class="slider"
              >Size
              <input
                type="range"
                min="1"
                max="60"
                step="0.5"
                .value=${String(session.brush)}
                @input=${(event) => {
			session.brush = Number(event.target.value);
			session.changed();
		}}
              />
              ${session.brush} pixels</label
            >` : A}
      </div>
    `;
	}
	list() {
		const { session } = this;
		const findings = session.drawn;
		return b`
      <div class="row title">
        <h3>Findings</h3>
        <button
          id="new"
          title="A finding to draw by hand"
          ?disabled=${!session.image}
          @click=${() => {
			session.begin();
			session.setTool("brush");
		}}
        >
          New
        </button>
      </div>
      ${findings.length ? A : b`<p class="hint">None yet. Type a text and press Enter, or draw one by hand.</p>`}
      <ul class="findings" aria-label="Findings">
        ${findings.map((finding, k) => this.row(finding, k))}
      </ul>
    `;
	}
	row(finding, number) {
		const { session } = this;
		const { evidence } = finding;
		const active = finding.id === session.active;
		const size = [this.sizeInWords(finding), madeBy(finding)].filter(Boolean).join(", ");
		const presence = evidence?.presence;
		const empty = !finding.planes.size;
		return b`
      <li class="finding ${active ? "on" : ""}" data-name=${finding.name}>
        <div class="row" @click=${() => session.select(finding.id)}>
          <span class="swatch" style="background: ${css(finding.colour)}"></span>
          ${active ? b`<input
                class="name"
                aria-label="Name of the finding"
                .value=${finding.name}
                @change=${(event) => session.rename(finding.id, event.target.value)}
                @keydown=${(event) => {
			if (event.key === "Enter" || event.key === "Escape") event.target.blur();
		}}
              />` : b`<button class="name" title="Choose (${number + 1})">${finding.name}</button>`}
          <button
            title=${finding.visible ? "Hide" : "Show"}
            aria-label="${finding.visible ? "Hide" : "Show"} ${finding.name}"
            @click=${(event) => {
			event.stopPropagation();
			session.setVisible(finding.id, !finding.visible);
		}}
          >
            ${finding.visible ? "Hide" : "Show"}
          </button>
          <button
            title="Edit with the brush"
            aria-label="Edit ${finding.name}"
            @click=${(event) => {
			event.stopPropagation();
			session.select(finding.id);
			session.setTool("brush");
		}}
          >
            Edit
          </button>
          <button
            title="Clear; Undo brings it back"
            aria-label="Clear ${finding.name}"
            @click=${(event) => {
			event.stopPropagation();
			session.clear(finding.id);
		}}
          >
            Clear
          </button>
        </div>
        <div class="facts">
          <span class="size ${empty ? "none" : ""}">${size}</span>
          ${presence === null || presence === void 0 ? A : this.presence(presence, evidence?.threshold ?? null)}
        </div>
        ${empty ? A : this.measured(finding)}
        ${empty && evidence?.reason ? b`<p class="why">${evidence.reason}</p>` : A}
        ${!empty && evidence?.doubt ? b`<p class="why">${evidence.doubt}</p>` : A}
      </li>
    `;
	}
	measured(finding) {
		const { session } = this;
		const measured = session.measurementsOf(finding);
		if (measured) return b`<p class="measured" title=${measuredAtLength(measured)}>${measuredInWords(measured)}</p>`;
		return session.unmeasured ? b`<p class="measured" title=${session.unmeasured}>not measured</p>` : b`<p class="measured">measuring ...</p>`;
	}
	presence(score, threshold) {
		const told = `Presence ${score.toFixed(2)}${threshold === null ? "" : `, threshold ${threshold.toFixed(2)}`}`;
		return b`
      <span class="presence" role="img" aria-label=${told} title=${told}>
        <span class="bar ${threshold === null || score >= threshold ? "enough" : ""}" style="width: ${Math.round(100 * score)}%"></span>
        ${threshold === null ? A : b`<span class="tick" style="left: ${Math.round(100 * threshold)}%"></span>`}
      </span>
      <span class="figure" aria-hidden="true">${score.toFixed(2)}</span>
    `;
	}
	looks() {
		const { session } = this;
		const { map, activeFinding } = session;
		const has = (kind) => Boolean(activeFinding?.evidence?.[kind]);
		return b`
      <div class="looks">
        <label class="slider"
          >Masks
          <input
            type="range"
            min="0"
            max="1"
            step="0.05"
            .value=${String(session.opacity)}
            @input=${(event) => {
			session.opacity = Number(event.target.value);
			session.changed();
		}}
          />
        </label>
        <button
          aria-pressed=${session.hidden ? "true" : "false"}
          title="Hide all masks (H)"
          @click=${() => {
			session.hidden = !session.hidden;
			session.changed();
		}}
        >
          ${session.hidden ? "Show all" : "Hide all"}
        </button>
        ${["saliency", "uncertainty"].map((kind) => b`
            <button
              data-map=${kind}
              class=${map?.kind === kind ? "on" : ""}
              aria-pressed=${map?.kind === kind ? "true" : "false"}
              ?disabled=${!has(kind)}
              title=${kind === "saliency" ? "Where the text was found (M)" : "Where the network is unsure (U)"}
              @click=${() => session.toggleMap(kind)}
            >
              ${kind === "saliency" ? "Saliency" : "Uncertainty"}
            </button>
          `)}
        <button
          id="axes"
          aria-pressed=${session.axes ? "true" : "false"}
          class=${session.axes ? "on" : ""}
          ?disabled=${!activeFinding?.planes.size}
          title="Draw the longest diameter and the one across it (A)"
          @click=${() => session.toggleAxes()}
        >
          Axes
        </button>
        ${map ? b`<label class="slider"
              >Map
              <input
                type="range"
                min="0"
                max="1"
                step="0.05"
                .value=${String(map.opacity)}
                @input=${(event) => {
			session.map = {
				...map,
				opacity: Number(event.target.value)
			};
			session.changed();
		}}
              />
            </label>` : A}
      </div>
    `;
	}
	foot() {
		const { session } = this;
		const { image } = session;
		return b`
      <footer>
        <p class="kept" data-state=${session.draftState}>${this.kept()}</p>
        <div class="row">
          <button class="main" id="save" title="Save (Ctrl+S)" ?disabled=${!image} @click=${() => void session.save()}>
            ${session.adjudication ? "Save as the consensus" : "Save"}
          </button>
          <button
            id="save-new"
            title="Save as new, beside the label before (Ctrl+Shift+S)"
            ?disabled=${!image || session.adjudication !== null}
            @click=${() => void session.save(true)}>
            Save as new
          </button>
          <button id="next" title="Next sample (.)" @click=${() => void this.next()}>Next sample</button>
          ${session.state?.to_adjudicate ? b`<button
                id="next-adjudication"
                title="The image whose readers agree least"
                @click=${() => void this.next(false, ADJUDICATION)}
              >
                Adjudicate (${session.state.to_adjudicate})
              </button>` : A}
        </div>
        ${this.report()} ${session.sampleReason ? b`<p class="hint">${session.sampleReason}</p>` : A}
        ${this.leaving ? b`<div class="conflict" role="alert">
              <p>This image has unsaved work; it is kept as a draft and comes back when you do.</p>
              <button
                @click=${() => {
			session.save().then(() => {
				if (!session.unsaved) this.next(true);
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
            </div>` : A}
        ${session.savedBy !== null || session.base ? this.reviewing() : A}
      </footer>
    `;
	}
	/** What becomes of the measurements of what is saved. */
	report() {
		const { session } = this;
		const { image, base } = session;
		if (!image) return A;
		return b`
      <div class="review" id="measurements">
        ${image.reports === "offered" ? b`<label>
              <input
                type="checkbox"
                id="report"
                .checked=${session.withReport}
                @change=${(event) => {
			session.withReport = event.target.checked;
		}}
              />
              Save the measurements to the PACS too (DICOM SR)
            </label>` : A}
        ${base ? b`<span>Measurements of the saved label:</span>
              <a href=${session.api.measurements(image.image, "csv")} download>CSV</a>
              <a href=${session.api.measurements(image.image, "json")} target="_blank" rel="noopener">JSON</a>` : A}
      </div>
    `;
	}
	reviewing() {
		const { session } = this;
		return b`
      <div class="review">
        <span>Review the saved label</span>
        <button id="accept" @click=${() => void session.review("approved")}>Accept</button>
        <button
          id="reject"
          aria-expanded=${this.rejecting ? "true" : "false"}
          @click=${() => {
			this.rejecting = !this.rejecting;
			this.requestUpdate();
		}}
        >
          Reject
        </button>
        ${this.rejecting ? b`<form
              @submit=${(event) => {
			event.preventDefault();
			const reason = new FormData(event.target).get("reason");
			this.rejecting = false;
			session.review("rejected", typeof reason === "string" ? reason.trim() : "");
		}}
            >
              <input name="reason" aria-label="Reason" placeholder="Reason" required maxlength="500" />
              <button>Send</button>
            </form>` : A}
      </div>
    `;
	}
	kept() {
		const { session } = this;
		const at = session.keptAt?.toLocaleTimeString();
		switch (session.draftState) {
			case "waiting":
			case "keeping": return "Keeping the draft ...";
			case "kept": return `Draft kept on the server${at ? ` at ${at}` : ""}; not saved as a label yet.`;
			case "failed": return "The draft is not kept on the server yet.";
			default: return session.base ? "Nothing to save." : "Nothing drawn yet.";
		}
	}
	keys() {
		return b`
      <section class="keys" aria-label="Keys">
        <h3>Keys</h3>
        <dl>
          ${SHORTCUTS.map((each) => b`<dt><kbd>${each.keys}</kbd></dt><dd>${each.what}</dd>`)}
          <dt><kbd>Enter</kbd></dt>
          <dd>In the text field: find</dd>
        </dl>
      </section>
    `;
	}
};
/** Register the component, once; all of them show the same session. */
function definePanel(session) {
	Panel.session = session;
	if (!customElements.get("medclipsam-panel")) customElements.define(PANEL_TAG, Panel);
}
// src/extension.ts
/**
* OHIF's extension: it joins the panel, the session and the overlays with OHIF's services.
*/
var viewerRoot = window.PUBLIC_URL;
var session = new Session(new Api(viewerRoot.replace(/viewer\/$/, "")));
/** Keeps an overlay on each viewport of the grid while the mode is open. */
var Overlays = class {
	constructor(services) {
		this.services = services;
		this.overlays = /* @__PURE__ */ new Map();
		this.maps = new MapPictures();
		this.subscriptions = [];
		session.addEventListener("reveal", (event) => {
			const active = services.viewportGridService.getState().activeViewportId;
			this.overlays.get(active ?? "")?.reveal(event.detail);
		});
	}
	start() {
		const { viewportGridService: grid, cornerstoneViewportService: viewports } = this.services;
		const follow = () => this.follow();
		this.subscriptions = [
			grid.subscribe(grid.EVENTS.ACTIVE_VIEWPORT_ID_CHANGED, follow),
			grid.subscribe(grid.EVENTS.GRID_STATE_CHANGED, follow),
			viewports.subscribe(viewports.EVENTS.VIEWPORT_DATA_CHANGED, follow)
		];
		this.follow();
	}
	stop() {
		this.subscriptions.forEach((each) => each.unsubscribe());
		this.subscriptions = [];
		this.overlays.forEach((each) => each.destroy());
		this.overlays.clear();
	}
	follow() {
		const { viewportGridService: grid, cornerstoneViewportService: viewports } = this.services;
		const { viewports: shown } = grid.getState();
		for (const [id, overlay] of this.overlays) if (!shown.has(id) || viewports.getCornerstoneViewport(id) !== overlay.viewport) {
			overlay.destroy();
			this.overlays.delete(id);
		}
		for (const id of shown.keys()) {
			const viewport = viewports.getCornerstoneViewport(id);
			if (viewport && !this.overlays.has(id)) {
				const overlay = new Overlay(viewport, session, this.maps, () => grid.setActiveViewportId(id));
				overlay.dispatch = () => this.look(id, overlay);
				this.overlays.set(id, overlay);
			}
		}
		const active = grid.getState().activeViewportId;
		const overlay = active ? this.overlays.get(active) : void 0;
		if (active && overlay) this.look(active, overlay);
	}
	look(id, overlay) {
		if (this.services.viewportGridService.getState().activeViewportId === id) session.show(overlay.shown);
	}
};
session.addEventListener("open", (event) => {
	const { StudyInstanceUID, SeriesInstanceUID } = event.detail;
	const query = new URLSearchParams({ StudyInstanceUIDs: StudyInstanceUID ?? "" });
	if (SeriesInstanceUID) {
		query.set("SeriesInstanceUIDs", SeriesInstanceUID);
		query.set("initialSeriesInstanceUID", SeriesInstanceUID);
	}
	location.assign(`${viewerRoot}annotate?${query.toString()}`);
});
var overlays;
var shortcuts = new Shortcuts(session);
var extension = {
	id: "medclipsam",
	preRegistration: ({ servicesManager }) => {
		definePanel(session);
		overlays = new Overlays(servicesManager.services);
	},
	onModeEnter: ({ extensionManager }) => {
		if (!location.pathname.startsWith(`${viewerRoot}annotate`)) return;
		const { exports } = extensionManager.getModuleEntry("@ohif/extension-cornerstone.utilityModule.common");
		session.steps = exports.getCornerstoneLibraries().cornerstone.utilities.HistoryMemo.DefaultHistoryMemo;
		overlays?.start();
		shortcuts.start();
		session.start();
	},
	onModeExit: () => {
		session.flush();
		overlays?.stop();
		shortcuts.stop();
		session.stop();
	},
	getPanelModule: () => [{
		name: "text",
		iconName: "tab-segmentation",
		iconLabel: "Annotate",
		label: "Annotate by text",
		component: () => ({
			$$typeof: Symbol.for("react.element"),
			type: PANEL_TAG,
			key: null,
			ref: null,
			props: {},
			_owner: null,
			_store: {}
		})
	}]
};
export { extension as default };
