// Moquette for tests/it/brokers.rs: java -cp 'JARS/*' Moquette.java PORT FOLDER
// Listens on 127.0.0.1, lets everybody in, keeps its sessions in FOLDER, and ends with SIGTERM.

import io.moquette.broker.Server;
import io.moquette.broker.config.MemoryConfig;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;

public class Moquette {
    public static void main(String[] arguments) throws Exception {
        Path folder = Files.createDirectories(Path.of(arguments[1]));
        Properties settings = new Properties();
        settings.setProperty("host", "127.0.0.1");
        settings.setProperty("port", arguments[0]);
        settings.setProperty("allow_anonymous", "true");
        settings.setProperty("persistence_enabled", "true");
        settings.setProperty("data_path", folder.toString());
        // Else up to 30 s of what it has taken are in memory alone.
        settings.setProperty("autosave_interval", "1");
        // Else it would tell its makers that it was started.
        settings.setProperty("telemetry_enabled", "false");
        Server broker = new Server();
        broker.startServer(new MemoryConfig(settings));
        Runtime.getRuntime().addShutdownHook(new Thread(broker::stopServer));
        Thread.currentThread().join();
    }
}
