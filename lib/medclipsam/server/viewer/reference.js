// The page to read the API's description.
Redoc.init("openapi.json", {}, document.getElementById("page"));
