// Paho Java for 3.1.1 and for 5, and HiveMQ's client in both, told on standard input what to do and saying on standard output
// what came of it: tests/it/libraries/ has the words. All that is not asked for there is left as the library has it.
// Run from its source, with Kafka's jars for Jackson.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.hivemq.client.mqtt.MqttClientBuilder;
import com.hivemq.client.mqtt.datatypes.MqttQos;
import com.hivemq.client.mqtt.lifecycle.MqttClientDisconnectedContext;
import com.hivemq.client.mqtt.mqtt3.Mqtt3AsyncClient;
import com.hivemq.client.mqtt.mqtt3.exceptions.Mqtt3ConnAckException;
import com.hivemq.client.mqtt.mqtt3.message.connect.Mqtt3Connect;
import com.hivemq.client.mqtt.mqtt3.message.subscribe.Mqtt3Subscription;
import com.hivemq.client.mqtt.mqtt5.Mqtt5AsyncClient;
import com.hivemq.client.mqtt.mqtt5.exceptions.Mqtt5ConnAckException;
import com.hivemq.client.mqtt.mqtt5.message.connect.Mqtt5Connect;
import com.hivemq.client.mqtt.mqtt5.message.subscribe.Mqtt5Subscription;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.StreamSupport;
import org.eclipse.paho.client.mqttv3.IMqttActionListener;
import org.eclipse.paho.client.mqttv3.IMqttDeliveryToken;
import org.eclipse.paho.client.mqttv3.IMqttToken;
import org.eclipse.paho.client.mqttv3.MqttCallbackExtended;
import org.eclipse.paho.client.mqttv3.MqttConnectOptions;
import org.eclipse.paho.mqttv5.client.MqttActionListener;
import org.eclipse.paho.mqttv5.client.MqttCallback;
import org.eclipse.paho.mqttv5.client.MqttClientException;
import org.eclipse.paho.mqttv5.client.MqttConnectionOptions;
import org.eclipse.paho.mqttv5.client.MqttDisconnectResponse;

public class Clients {
    static final ObjectMapper JSON = new ObjectMapper();
    /** More than any of them is given while the listener is away. */
    static final int QUEUE = 5_000;

    public static void main(String[] arguments) throws Exception {
        Map<String, Client> clients = new HashMap<>();
        BufferedReader orders = new BufferedReader(new InputStreamReader(System.in));
        for (String line = orders.readLine(); line != null; line = orders.readLine()) {
            JsonNode order = JSON.readTree(line);
            String name = order.get("client").asText();
            switch (order.get("do").asText()) {
                case "open" -> clients.put(name, open(name, order));
                case "publish" -> start(() -> publish(clients.get(name), order));
                case "subscribe" -> clients.get(name).subscribe(texts(order.get("filters")));
                case "close" -> start(clients.get(name)::close);
                default -> throw new IllegalArgumentException(line);
            }
        }
        System.exit(0);
    }

    interface Work {
        void run() throws Exception;
    }

    static void start(Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Exception error) {
                error.printStackTrace();
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    static Client open(String name, JsonNode order) throws Exception {
        Client client = switch (order.get("library").asText()) {
            case "paho-java" -> order.get("version").asInt() == 5 ? new Paho5(name) : new Paho3(name);
            default -> order.get("version").asInt() == 5 ? new HiveMq5(name) : new HiveMq3(name);
        };
        client.open(order);
        return client;
    }

    static void publish(Client client, JsonNode order) throws Exception {
        String topic = order.get("topic").asText();
        for (String payload : texts(order.get("payloads"))) {
            client.publish(topic, payload.getBytes(), order.get("qos").asInt(), order.get("retain").asBoolean());
            Thread.sleep(order.get("pause_ms").asLong());
        }
    }

    static List<String> texts(JsonNode array) {
        return StreamSupport.stream(array.spliterator(), false).map(JsonNode::asText).toList();
    }

    abstract static class Client {
        final String name;
        private final AtomicLong acked = new AtomicLong();

        Client(String name) {
            this.name = name;
        }

        abstract void open(JsonNode order) throws Exception;

        abstract void publish(String topic, byte[] payload, int qos, boolean retain) throws Exception;

        abstract void subscribe(List<String> filters) throws Exception;

        abstract void close() throws Exception;

        void say(String key, Object what) {
            JsonNode line = JSON.valueToTree(Map.of("client", name, key, what));
            synchronized (System.out) {
                System.out.println(line);
            }
        }

        void acked() {
            // In the order of the numbers.
            synchronized (acked) {
                say("acked", acked.incrementAndGet());
            }
        }
    }

    static String address(JsonNode order) {
        return "tcp://" + order.get("host").asText() + ":" + order.get("port").asInt();
    }

    static class Paho3 extends Client implements MqttCallbackExtended {
        private org.eclipse.paho.client.mqttv3.MqttAsyncClient client;

        Paho3(String name) {
            super(name);
        }

        @Override
        void open(JsonNode order) throws Exception {
            var memory = new org.eclipse.paho.client.mqttv3.persist.MemoryPersistence();
            client = new org.eclipse.paho.client.mqttv3.MqttAsyncClient(address(order), name, memory);
            client.setCallback(this);
            var buffer = new org.eclipse.paho.client.mqttv3.DisconnectedBufferOptions();
            buffer.setBufferEnabled(true);
            buffer.setBufferSize(QUEUE);
            client.setBufferOpts(buffer);
            MqttConnectOptions options = new MqttConnectOptions();
            options.setCleanSession(!order.get("persistent").asBoolean());
            options.setAutomaticReconnect(true);
            options.setMaxReconnectDelay(1_000);
            if (order.has("user")) {
                options.setUserName(order.get("user").asText());
                options.setPassword(order.get("password").asText().toCharArray());
            }
            if (order.has("will")) {
                JsonNode will = order.get("will");
                options.setWill(will.get("topic").asText(), will.get("payload").asText().getBytes(), 1, false);
            }
            client.connect(options, null, new Listener("refused", token -> {}));
        }

        @Override
        void publish(String topic, byte[] payload, int qos, boolean retain) throws Exception {
            while (true) {
                try {
                    client.publish(topic, payload, qos, retain, null, new Listener("rejected", token -> acked()));
                    return;
                } catch (org.eclipse.paho.client.mqttv3.MqttException error) {
                    // The application is to wait: ten may be in flight.
                    if (error.getReasonCode() != org.eclipse.paho.client.mqttv3.MqttException.REASON_CODE_MAX_INFLIGHT) {
                        throw error;
                    }
                    Thread.sleep(1);
                }
            }
        }

        @Override
        void subscribe(List<String> filters) throws Exception {
            int[] qos = filters.stream().mapToInt(filter -> 1).toArray();
            Listener listener = new Listener("refused", token -> say("granted", token.getGrantedQos()));
            client.subscribe(filters.toArray(String[]::new), qos, null, listener);
        }

        @Override
        void close() throws Exception {
            if (client.isConnected()) {
                client.disconnect();
            }
        }

        @Override
        public void connectComplete(boolean again, String address) {
            say("connected", true);
        }

        @Override
        public void connectionLost(Throwable why) {
            say("lost", String.valueOf(why));
        }

        @Override
        public void messageArrived(String topic, org.eclipse.paho.client.mqttv3.MqttMessage message) {}

        @Override
        public void deliveryComplete(IMqttDeliveryToken token) {}

        class Listener implements IMqttActionListener {
            private final String failure;
            private final java.util.function.Consumer<IMqttToken> success;

            Listener(String failure, java.util.function.Consumer<IMqttToken> success) {
                this.failure = failure;
                this.success = success;
            }

            @Override
            public void onSuccess(IMqttToken token) {
                success.accept(token);
            }

            @Override
            public void onFailure(IMqttToken token, Throwable why) {
                say(failure, why.getMessage());
            }
        }
    }

    static class Paho5 extends Client implements MqttCallback {
        private org.eclipse.paho.mqttv5.client.MqttAsyncClient client;

        Paho5(String name) {
            super(name);
        }

        @Override
        void open(JsonNode order) throws Exception {
            var memory = new org.eclipse.paho.mqttv5.client.persist.MemoryPersistence();
            client = new org.eclipse.paho.mqttv5.client.MqttAsyncClient(address(order), name, memory);
            client.setCallback(this);
            var buffer = new org.eclipse.paho.mqttv5.client.DisconnectedBufferOptions();
            buffer.setBufferEnabled(true);
            buffer.setBufferSize(QUEUE);
            client.setBufferOpts(buffer);
            MqttConnectionOptions options = new MqttConnectionOptions();
            options.setCleanStart(!order.get("persistent").asBoolean());
            if (order.get("persistent").asBoolean()) {
                options.setSessionExpiryInterval(3_600L);
            }
            options.setAutomaticReconnect(true);
            options.setAutomaticReconnectDelay(1, 1);
            options.setMaxReconnectDelay(1_000);
            if (order.has("user")) {
                options.setUserName(order.get("user").asText());
                options.setPassword(order.get("password").asText().getBytes());
            }
            if (order.has("will")) {
                JsonNode will = order.get("will");
                byte[] payload = will.get("payload").asText().getBytes();
                var message = new org.eclipse.paho.mqttv5.common.MqttMessage(payload, 1, false, null);
                options.setWill(will.get("topic").asText(), message);
            }
            client.connect(options, null, new Listener("refused", token -> {}));
        }

        @Override
        void publish(String topic, byte[] payload, int qos, boolean retain) throws Exception {
            Listener listener = new Listener("rejected", this::answered) {
                @Override
                public void onFailure(org.eclipse.paho.mqttv5.client.IMqttToken token, Throwable why) {
                    // In the moment in which the connection is lost it neither sends nor keeps: the application's to say again.
                    if (code(why) == MqttClientException.REASON_CODE_CLIENT_NOT_CONNECTED) {
                        start(() -> publish(topic, payload, qos, retain));
                    } else {
                        super.onFailure(token, why);
                    }
                }
            };
            while (true) {
                try {
                    client.publish(topic, payload, qos, retain, null, listener);
                    return;
                } catch (org.eclipse.paho.mqttv5.common.MqttException error) {
                    int code = code(error);
                    if (code != MqttClientException.REASON_CODE_MAX_INFLIGHT
                            && code != MqttClientException.REASON_CODE_CLIENT_NOT_CONNECTED) {
                        say("rejected", error.getMessage());
                        return;
                    }
                    // The application is to wait: as many may be in flight as the listener bears.
                    Thread.sleep(1);
                }
            }
        }

        private static int code(Throwable error) {
            return error instanceof org.eclipse.paho.mqttv5.common.MqttException mqtt ? mqtt.getReasonCode() : 0;
        }

        private void answered(org.eclipse.paho.mqttv5.client.IMqttToken token) {
            int[] codes = token.getReasonCodes();
            if (codes != null && codes.length > 0 && codes[0] >= 0x80) {
                say("rejected", "reason " + codes[0]);
            } else {
                acked();
            }
        }

        @Override
        void subscribe(List<String> filters) throws Exception {
            int[] qos = filters.stream().mapToInt(filter -> 1).toArray();
            Listener listener = new Listener("refused", token -> say("granted", token.getReasonCodes()));
            client.subscribe(filters.toArray(String[]::new), qos, null, listener);
        }

        @Override
        void close() throws Exception {
            if (client.isConnected()) {
                client.disconnect();
            }
        }

        @Override
        public void connectComplete(boolean again, String address) {
            say("connected", true);
        }

        @Override
        public void disconnected(MqttDisconnectResponse why) {
            say("lost", String.valueOf(why));
        }

        @Override
        public void mqttErrorOccurred(org.eclipse.paho.mqttv5.common.MqttException error) {
            error.printStackTrace();
        }

        @Override
        public void messageArrived(String topic, org.eclipse.paho.mqttv5.common.MqttMessage message) {}

        @Override
        public void deliveryComplete(org.eclipse.paho.mqttv5.client.IMqttToken token) {}

        @Override
        public void authPacketArrived(int code, org.eclipse.paho.mqttv5.common.packet.MqttProperties properties) {}

        class Listener implements MqttActionListener {
            private final String failure;
            private final java.util.function.Consumer<org.eclipse.paho.mqttv5.client.IMqttToken> success;

            Listener(String failure, java.util.function.Consumer<org.eclipse.paho.mqttv5.client.IMqttToken> success) {
                this.failure = failure;
                this.success = success;
            }

            @Override
            public void onSuccess(org.eclipse.paho.mqttv5.client.IMqttToken token) {
                success.accept(token);
            }

            @Override
            public void onFailure(org.eclipse.paho.mqttv5.client.IMqttToken token, Throwable why) {
                say(failure, why.getMessage());
            }
        }
    }

    abstract static class HiveMq extends Client {
        HiveMq(String name) {
            super(name);
        }

        MqttClientBuilder builder(JsonNode order) {
            return com.hivemq.client.mqtt.MqttClient.builder()
                    .identifier(name)
                    .serverHost(order.get("host").asText())
                    .serverPort(order.get("port").asInt())
                    .automaticReconnect()
                    .initialDelay(1, TimeUnit.SECONDS)
                    .maxDelay(1, TimeUnit.SECONDS)
                    .applyAutomaticReconnect()
                    .addConnectedListener(context -> say("connected", true))
                    .addDisconnectedListener(this::lost);
        }

        private void lost(MqttClientDisconnectedContext context) {
            Throwable why = context.getCause();
            if (why instanceof Mqtt3ConnAckException || why instanceof Mqtt5ConnAckException) {
                context.getReconnector().reconnect(false);
                say("refused", why.getMessage());
            } else {
                say("lost", String.valueOf(why));
            }
        }

        void answered(Throwable error) {
            if (error == null) {
                acked();
            } else {
                say("rejected", error.getMessage());
            }
        }
    }

    static class HiveMq3 extends HiveMq {
        private Mqtt3AsyncClient client;

        HiveMq3(String name) {
            super(name);
        }

        @Override
        void open(JsonNode order) {
            var builder = builder(order).useMqttVersion3();
            // Of the client and not of one CONNECT: the next ones, by themselves, are without what only the first one had.
            if (order.has("user")) {
                byte[] password = order.get("password").asText().getBytes();
                builder.simpleAuth().username(order.get("user").asText()).password(password).applySimpleAuth();
            }
            if (order.has("will")) {
                JsonNode will = order.get("will");
                byte[] payload = will.get("payload").asText().getBytes();
                builder.willPublish()
                        .topic(will.get("topic").asText())
                        .payload(payload)
                        .qos(MqttQos.AT_LEAST_ONCE)
                        .applyWillPublish();
            }
            client = builder.buildAsync();
            var connect = Mqtt3Connect.builder().cleanSession(!order.get("persistent").asBoolean());
            client.connect(connect.build());
        }

        @Override
        void publish(String topic, byte[] payload, int qos, boolean retain) {
            var publish = client.publishWith().topic(topic).payload(payload).qos(MqttQos.fromCode(qos)).retain(retain);
            publish.send().whenComplete((done, error) -> answered(error));
        }

        @Override
        void subscribe(List<String> filters) {
            var subscriptions = filters.stream()
                    .map(filter -> Mqtt3Subscription.builder().topicFilter(filter).qos(MqttQos.AT_LEAST_ONCE).build());
            client.subscribeWith().addSubscriptions(subscriptions).send().whenComplete((granted, error) -> {
                if (error != null) {
                    say("refused", error.getMessage());
                } else {
                    say("granted", granted.getReturnCodes().stream().map(code -> code.getCode()).toList());
                }
            });
        }

        @Override
        void close() {
            client.disconnect();
        }
    }

    static class HiveMq5 extends HiveMq {
        private Mqtt5AsyncClient client;

        HiveMq5(String name) {
            super(name);
        }

        @Override
        void open(JsonNode order) {
            var builder = builder(order).useMqttVersion5();
            // Of the client and not of one CONNECT: the next ones, by themselves, are without what only the first one had.
            if (order.has("user")) {
                byte[] password = order.get("password").asText().getBytes();
                builder.simpleAuth().username(order.get("user").asText()).password(password).applySimpleAuth();
            }
            if (order.has("will")) {
                JsonNode will = order.get("will");
                byte[] payload = will.get("payload").asText().getBytes();
                builder.willPublish()
                        .topic(will.get("topic").asText())
                        .payload(payload)
                        .qos(MqttQos.AT_LEAST_ONCE)
                        .applyWillPublish();
            }
            client = builder.buildAsync();
            var connect = Mqtt5Connect.builder().cleanStart(!order.get("persistent").asBoolean());
            if (order.get("persistent").asBoolean()) {
                connect.sessionExpiryInterval(3_600);
            }
            client.connect(connect.build());
        }

        @Override
        void publish(String topic, byte[] payload, int qos, boolean retain) {
            var publish = client.publishWith().topic(topic).payload(payload).qos(MqttQos.fromCode(qos)).retain(retain);
            publish.send().whenComplete((done, error) -> answered(error));
        }

        @Override
        void subscribe(List<String> filters) {
            var subscriptions = filters.stream()
                    .map(filter -> Mqtt5Subscription.builder().topicFilter(filter).qos(MqttQos.AT_LEAST_ONCE).build());
            client.subscribeWith().addSubscriptions(subscriptions).send().whenComplete((granted, error) -> {
                if (error != null) {
                    say("refused", error.getMessage());
                } else {
                    say("granted", granted.getReasonCodes().stream().map(code -> code.getCode()).toList());
                }
            });
        }

        @Override
        void close() {
            client.disconnect();
        }
    }
}
