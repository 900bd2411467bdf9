import java.util.Properties;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;

/** Commits, aborts, commits again, and dies inside a transaction: Transactions BOOTSTRAP TOPIC COUNT. Each value names how it ended. */
public class Transactions {
    public static void main(String[] arguments) throws Exception {
        String topic = arguments[1];
        int count = Integer.parseInt(arguments[2]);
        Properties properties = new Properties();
        properties.put("bootstrap.servers", arguments[0]);
        properties.put("transactional.id", topic + "-writer");
        // Soon after its death the coordinator ends what it left open.
        properties.put("transaction.timeout.ms", "2000");
        properties.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        properties.put("value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        KafkaProducer<String, String> producer = new KafkaProducer<>(properties);
        producer.initTransactions();
        for (String end : new String[] {"committed", "aborted", "committed", "abandoned"}) {
            producer.beginTransaction();
            for (int number = 0; number < count; number++) {
                producer.send(new ProducerRecord<>(topic, 0, end + number, "This document was " + end + "."));
            }
            producer.flush();
            switch (end) {
                case "committed" -> producer.commitTransaction();
                case "aborted" -> producer.abortTransaction();
                default -> Runtime.getRuntime().halt(0);
            }
        }
    }
}
