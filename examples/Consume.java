import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Reads what Tidegate delivers, each reading once.
 *
 * <pre>java -cp 'kafka/libs/*' Consume.java kafka-1:9092 sensors.north</pre>
 *
 * With delivery = "exactly-once" read_committed is all it takes. With "at-least-once", or for a reader that cannot do
 * read_committed, the headers tell a repeat: within a partition the sequences of one MQTT topic only rise. Who stores
 * results keeps {@code last} and the offsets with them, in one transaction.
 */
public class Consume {
    /** Of each buffer's MQTT topics the last sequence. */
    private final Map<String, Long> last = new HashMap<>();

    public static void main(String[] arguments) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", arguments[0]);
        properties.put("group.id", "tidegate-example-java");
        properties.put("isolation.level", "read_committed"); // what is aborted, or not yet committed, is not seen
        properties.put("auto.offset.reset", "earliest");
        properties.put("enable.auto.commit", "false");
        properties.put("key.deserializer", ByteArrayDeserializer.class.getName());
        properties.put("value.deserializer", ByteArrayDeserializer.class.getName());
        Consume consume = new Consume();
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(properties)) {
            consumer.subscribe(List.of(arguments[1]));
            while (true) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    if (consume.isNew(record)) {
                        String value = record.value() == null ? "" : new String(record.value(), StandardCharsets.UTF_8);
                        System.out.println(text(record, "mqtt-topic") + " " + value);
                    }
                }
                consumer.commitAsync();
            }
        }
    }

    /** False for a reading that came before, under this id or under the one it had in a buffer that was cloned. */
    private boolean isNew(ConsumerRecord<byte[], byte[]> record) {
        boolean isNew = true;
        for (String name : List.of("tidegate-id", "tidegate-was")) {
            String id = text(record, name);
            if (id == null) {
                continue;
            }
            int colon = id.lastIndexOf(':');
            long sequence = Long.parseLong(id.substring(colon + 1));
            String key = id.substring(0, colon + 1) + text(record, "mqtt-topic");
            isNew = isNew && sequence > last.getOrDefault(key, 0L);
            last.merge(key, sequence, Math::max);
        }
        return isNew;
    }

    /** The first header of that name; null when there is none. */
    private static String text(ConsumerRecord<byte[], byte[]> record, String name) {
        for (Header header : record.headers().headers(name)) {
            return new String(header.value(), StandardCharsets.UTF_8);
        }
        return null;
    }
}
