import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.BitSet;
import java.util.LinkedHashMap;
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
 * <pre>java -cp 'kafka/libs/*' Consume.java kafka-1:9092 sensors.north [group]</pre>
 *
 * With delivery = "exactly-once" read_committed is all it takes, but for what a clone or a restored buffer sends again.
 * With "at-least-once", or for a reader that cannot do read_committed, the headers tell a repeat: the start of the agent
 * that stored a reading (tidegate-instance) and the sequence in tidegate-id are the reading's own, whoever sends it, in
 * whatever order. The id alone is not enough: two copies of a buffer may have used one number for two readings. Who stores
 * results makes the two their key, or keeps {@code seen} and the offsets with them, in one transaction.
 */
public class Consume {
    /** Sequences of a block: one bit each. */
    private static final int BLOCK = 4096;

    /** 75 MB, up to 400 million readings; what was forgotten is taken for new, never for a repeat. */
    private static final int MOST_BLOCKS = 100_000;

    /** Of each start of an agent, by blocks, which sequences came; the oldest blocks go first. */
    private final Map<String, BitSet> seen = new LinkedHashMap<>() {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, BitSet> eldest) {
            return size() > MOST_BLOCKS;
        }
    };

    public static void main(String[] arguments) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", arguments[0]);
        properties.put("group.id", arguments.length > 2 ? arguments[2] : "tidegate-example-java");
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

    /** False for a reading that came before, under this id or under another one. */
    private boolean isNew(ConsumerRecord<byte[], byte[]> record) {
        String id = text(record, "tidegate-id");
        if (id == null) {
            return true; // somebody else's record
        }
        int colon = id.lastIndexOf(':');
        long sequence = Long.parseLong(id.substring(colon + 1));
        String instance = text(record, "tidegate-instance");
        String key = (instance == null ? id.substring(0, colon) : instance) + ":" + sequence / BLOCK;
        BitSet bits = seen.computeIfAbsent(key, none -> new BitSet(BLOCK));
        int place = (int) (sequence % BLOCK);
        boolean isNew = !bits.get(place);
        bits.set(place);
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
