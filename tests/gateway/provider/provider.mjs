// A sign-on provider in memory, for tests: `node provider.mjs PORT AUDIENCE REDIRECT`, the last of the gateway's page.
// Accounts are made by signing in; the roles of a person follow from the name.
import { createServer } from "node:http";
import Provider from "oidc-provider";

const [port, audience, redirect] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const resource = "urn:mltf:gateway";
const DEVICE = "urn:ietf:params:oauth:grant-type:device_code";

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: "mltf-cli",
      token_endpoint_auth_method: "none",
      application_type: "native",
      grant_types: [DEVICE, "refresh_token"],
      redirect_uris: [],
      response_types: [],
    },
    {
      client_id: "mltf-web",
      token_endpoint_auth_method: "none",
      grant_types: ["authorization_code"],
      redirect_uris: [redirect],
      response_types: ["code"],
    },
    {
      client_id: "robot",
      client_secret: "secret-of-the-robot",
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
    },
    {
      client_id: "stranger",
      client_secret: "secret-of-the-stranger",
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
    },
  ],
  features: {
    devInteractions: { enabled: true },
    deviceFlow: { enabled: true },
    clientCredentials: { enabled: true },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: "openid offline_access",
        audience,
        accessTokenTTL: Number(process.env.ACCESS_TOKEN_TTL ?? 600),
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
  scopes: ["openid", "offline_access"],
  issueRefreshToken: (ctx, client) => client.grantTypeAllowed("refresh_token"),
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  extraTokenClaims: (ctx, token) => {
    const name = token.accountId ?? token.clientId;
    return { roles: name.startsWith("guest") ? [] : [name.startsWith("admin") ? "admin" : "user"], preferred_username: name };
  },
});

// a client without this waits for five seconds
provider.use(async (ctx, next) => {
  await next();
  if (ctx.body?.device_code) ctx.body.interval = 1;
});

createServer(provider.callback()).listen(Number(port), "127.0.0.1", () => console.log("ready"));
