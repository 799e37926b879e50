// Swagger UI over this instance's own document; what is tried goes to the instance that served the page.
const description = fetch("/openapi.json").then((response) => response.json());
description.then((spec) => SwaggerUIBundle({
  dom_id: "#docs",
  spec: { ...spec, servers: [{ url: location.origin, description: "This instance" }] },
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  // No badge of a validator on another host.
  validatorUrl: null,
}));
