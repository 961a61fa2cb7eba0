// src/mode.ts
var STACK = "@ohif/extension-default.sopClassHandlerModule.stack";
var VIEWPORT = "@ohif/extension-cornerstone.viewportModule.cornerstone";
var LAYOUT = "@ohif/extension-default.layoutTemplateModule.viewerLayout";
var SERIES = "@ohif/extension-default.panelModule.seriesList";
var PANEL = "medclipsam.panelModule.text";
/** What holds no picture; a study of these alone cannot be annotated. */
var OTHER_MODALITIES = [
	"SEG",
	"RTSTRUCT",
	"RTPLAN",
	"PR",
	"SR",
	"DOC",
	"ECG",
	"KO"
];
function makeToolGroup({ extensionManager, servicesManager }) {
	const { toolNames, Enums } = extensionManager.getModuleEntry("@ohif/extension-cornerstone.utilityModule.tools").exports;
	const { Primary, Auxiliary, Secondary, Wheel } = Enums.MouseBindings;
	servicesManager.services.toolGroupService.createToolGroupAndAddTools("default", {
		active: [
			{
				toolName: toolNames.WindowLevel,
				bindings: [{ mouseButton: Primary }]
			},
			{
				toolName: toolNames.Pan,
				bindings: [{ mouseButton: Auxiliary }]
			},
			{
				toolName: toolNames.Zoom,
				bindings: [{ mouseButton: Secondary }]
			},
			{
				toolName: toolNames.StackScroll,
				bindings: [{ mouseButton: Wheel }]
			}
		],
		passive: [{ toolName: toolNames.Length }, { toolName: toolNames.Magnify }]
	});
}
var mode = {
	id: "medclipsam.annotate",
	modeFactory: () => ({
		id: "medclipsam.annotate",
		routeName: "annotate",
		displayName: "Annotate by text",
		onModeEnter: (context) => {
			makeToolGroup(context);
		},
		onModeExit: ({ servicesManager }) => {
			const { toolGroupService, syncGroupService, segmentationService, cornerstoneViewportService } = servicesManager.services;
			for (const service of [
				toolGroupService,
				syncGroupService,
				segmentationService,
				cornerstoneViewportService
			]) service.destroy();
		},
		validationTags: {
			study: [],
			series: []
		},
		isValidMode: ({ modalities }) => ({
			valid: modalities.split("\\").some((each) => !OTHER_MODALITIES.includes(each)),
			description: "The study holds no picture."
		}),
		routes: [{
			path: "annotate",
			layoutTemplate: () => ({
				id: LAYOUT,
				props: {
					leftPanels: [SERIES],
					leftPanelClosed: false,
					leftPanelResizable: true,
					leftPanelInitialExpandedWidth: 170,
					rightPanels: [PANEL],
					rightPanelClosed: false,
					rightPanelResizable: true,
					rightPanelInitialExpandedWidth: 380,
					viewports: [{
						namespace: VIEWPORT,
						displaySetsToDisplay: [STACK]
					}]
				}
			})
		}],
		extensions: {},
		hangingProtocol: "default",
		sopClassHandlers: [STACK]
	}),
	extensionDependencies: {}
};
export { mode as default };
