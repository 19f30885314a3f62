// Prints the value of each record of a topic, a line each, committed ones only (kafkajs' default): BROKERS TOPIC COUNT.
// Ends when COUNT have come and no more came for two seconds, or after a minute without them.
const { Kafka, logLevel } = require("kafkajs");

const [brokers, topic, count] = process.argv.slice(2);
let seen = 0;
let last = Date.now();

async function main() {
  const kafka = new Kafka({ brokers: brokers.split(","), logLevel: logLevel.ERROR });
  const consumer = kafka.consumer({ groupId: topic + "-kafkajs" });
  consumer.on("consumer.crash", (event) => {
    console.error(event.payload.error.message);
    if (!event.payload.restart) process.exit(1);
  });
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  await consumer.run({
    eachMessage: async ({ message }) => {
      console.log(message.value.toString());
      seen += 1;
      last = Date.now();
    },
  });
  setInterval(() => {
    if (Date.now() - last > (seen >= Number(count) ? 2000 : 60000)) process.exit(0);
  }, 200);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
