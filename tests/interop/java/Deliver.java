import com.sun.mail.smtp.SMTPAddressFailedException;
import com.sun.mail.smtp.SMTPMessage;
import com.sun.mail.smtp.SMTPSendFailedException;
import jakarta.mail.Address;
import jakarta.mail.MessagingException;
import jakarta.mail.SendFailedException;
import jakarta.mail.Session;
import jakarta.mail.Transport;
import jakarta.mail.internet.InternetAddress;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.Properties;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/**
 * Delivers one message with Jakarta Mail. Standard input is a properties file: what begins with "mail." is for Jakarta
 * Mail, what begins with "order." for this program. Standard output: "sent", or a line for each exception, in a chain:
 * its class, the reply's code where it has one, its text. Before that "address A" for each recipient that got the
 * message, where not all did.
 */
public final class Deliver {
    private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

    public static void main(String[] arguments) throws Exception {
        Properties order = new Properties();
        order.load(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        order.put("mail.smtp.ssl.socketFactory", trusting(order).getSocketFactory());
        try {
            deliver(order);
            OUT.println("sent");
        } catch (MessagingException failure) {
            tell(failure);
        }
    }

    private static SSLContext trusting(Properties order) throws Exception {
        KeyStore authorities = KeyStore.getInstance(KeyStore.getDefaultType());
        authorities.load(null, null);
        try (InputStream pem = Files.newInputStream(Path.of(order.getProperty("order.ca")))) {
            authorities.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(authorities);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(ownKeys(order.getProperty("order.certificate")), trust.getTrustManagers(), null);
        return context;
    }

    private static KeyManager[] ownKeys(String path) throws Exception {
        if (path == null) {
            return null;
        }
        char[] password = "secret".toCharArray();
        KeyStore own = KeyStore.getInstance("PKCS12");
        try (InputStream file = Files.newInputStream(Path.of(path))) {
            own.load(file, password);
        }
        KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(own, password);
        return keys.getKeyManagers();
    }

    private static void deliver(Properties order) throws Exception {
        Session session = Session.getInstance(order);
        String[] names = order.getProperty("order.to").split(",");
        Address[] recipients = new Address[names.length];
        for (int at = 0; at < names.length; at++) {
            recipients[at] = new InternetAddress(names[at]);
        }
        try (Transport transport = session.getTransport("smtp")) {
            transport.connect(order.getProperty("order.user"), order.getProperty("order.secret"));
            for (int times = Integer.parseInt(order.getProperty("order.times", "1")); times > 0; times--) {
                transport.sendMessage(message(session, order), recipients);
            }
        }
    }

    private static SMTPMessage message(Session session, Properties order) throws Exception {
        try (InputStream file = Files.newInputStream(Path.of(order.getProperty("order.file")))) {
            SMTPMessage message = new SMTPMessage(session, file);
            message.setEnvelopeFrom(order.getProperty("order.from"));
            message.setMailExtension(order.getProperty("order.mail_extension"));
            return message;
        }
    }

    private static void tell(MessagingException failure) {
        if (failure instanceof SendFailedException && ((SendFailedException) failure).getValidSentAddresses() != null) {
            for (Address address : ((SendFailedException) failure).getValidSentAddresses()) {
                OUT.println("address " + address);
            }
        }
        for (Exception each = failure; each != null; each = next(each)) {
            String text = String.valueOf(each.getMessage()).strip();
            OUT.println(each.getClass().getSimpleName() + " " + code(each) + " " + text.replaceAll("\\s+", " "));
        }
    }

    private static Exception next(Exception each) {
        return each instanceof MessagingException ? ((MessagingException) each).getNextException() : null;
    }

    private static int code(Exception each) {
        if (each instanceof SMTPSendFailedException) {
            return ((SMTPSendFailedException) each).getReturnCode();
        }
        return each instanceof SMTPAddressFailedException ? ((SMTPAddressFailedException) each).getReturnCode() : 0;
    }

    private Deliver() {}
}
