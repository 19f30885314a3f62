// mqtt.js, told on standard input what to do and saying on standard output what came of it: tests/it/libraries/ has the
// words. All that is not asked for there is left as the library has it.
const mqtt = require("mqtt");
const readline = require("readline");

const clients = {};
const acked = {};
const say = (client, what) => console.log(JSON.stringify({ client, ...what }));

function open(name, order) {
  const options = {
    clientId: name,
    protocolVersion: order.version,
    clean: !order.persistent,
    username: order.user,
    password: order.password,
    will: order.will && { ...order.will, qos: 1 },
  };
  if (order.version === 5 && order.persistent) options.properties = { sessionExpiryInterval: 3600 };
  const client = mqtt.connect(`mqtt://${order.host}:${order.port}`, options);
  clients[name] = client;
  acked[name] = 0;
  client.on("connect", () => say(name, { connected: true }));
  client.on("disconnect", (packet) => say(name, { lost: `DISCONNECT ${packet.reasonCode}` }));
  client.on("close", () => say(name, { lost: "closed" }));
  client.on("error", (error) => {
    // A listener that is away is an error as well, and no refusal.
    if (!["ECONNREFUSED", "ECONNRESET"].includes(error.code)) say(name, { refused: error.message });
  });
}

async function publish(name, { topic, payloads, qos, retain, pause_ms: pause }) {
  for (const payload of payloads) {
    clients[name].publish(topic, payload, { qos, retain }, (error) => {
      if (error) return say(name, { rejected: error.message });
      acked[name] += 1;
      say(name, { acked: acked[name] });
    });
    if (pause) await new Promise((done) => setTimeout(done, pause));
  }
}

function subscribe(name, { filters }) {
  clients[name].subscribe(filters, { qos: 1 }, (error, granted) => {
    say(name, error ? { refused: error.message } : { granted: granted.map((one) => one.qos) });
  });
}

const orders = { open, publish, subscribe, close: (name) => clients[name].end() };
readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const order = JSON.parse(line);
  orders[order.do](order.client, order);
});
