<?php

declare(strict_types=1);

namespace Realtime\Laravel\Client;

use Realtime\Exception\ConfigError;
use Realtime\Exception\InvalidChannel;
use Realtime\Exception\InvalidMessage;
use Realtime\Exception\MessageTooLarge;
use Realtime\Exception\QueueFull;
use Realtime\Exception\RealtimeException;
use Realtime\Exception\Timeout;
use Realtime\Exception\Unauthorized;
use Realtime\Exception\Unavailable;

/**
 * The bus in plain PHP: a Unix socket to the hub of another process, or TCP with a shared secret, and
 * TLS where it is wanted, to one elsewhere. The frames are those of docs/protocol/bus.md.
 *
 * One connection, made by the first call and kept. A forked child makes its own, and so does the
 * first call after the hub went away. Over TLS a child that gives its copy up ends the parent's
 * connection too, because PHP says goodbye for it: the parent's next call makes a new one.
 */
final class BusClient implements Client
{
    private const CONNECT_S = 0.1;
    private const CALL_S = 1.0;
    /** What a record of TLS holds: OpenSSL wants to be given the same again when it had no room. */
    private const RECORD_BYTES = 16384;
    private const RETRY_AFTER_S = 1.0;
    /** How long a question for an event waits at the hub: less than a call may take. */
    private const EVENT_WAIT_MS = 400;

    private const VERSION = 1;
    private const MAX_FRAME_BYTES = 1 << 20;
    private const MAX_BATCH = 4096;
    private const MAX_ANSWER_BYTES = 64 << 20;

    private const HELLO = 0x01;
    private const PUBLISH = 0x02;
    private const BATCH = 0x03;
    private const QUERY = 0x04;
    private const KNOCK = 0x05;
    private const PROOF = 0x06;
    private const WELCOME = 0x81;
    private const RECEIPT = 0x82;
    private const FAILURE = 0x83;
    private const ANSWER = 0x84;
    private const CHALLENGE = 0x85;

    private const NONCE_BYTES = 32;
    private const TAG_BYTES = 16;
    private const MIN_SECRET_BYTES = 32;

    /** @var resource|null */
    private $stream;
    private int $process = 0;
    private int $request = 0;
    /** Bytes that came and are not a whole frame yet. */
    private string $partial = '';
    /** After a deadline passed, calls fail at once until then. */
    private float $silentUntil = 0.0;

    /** Over TCP: the keys of both directions, and how many frames went each way. */
    private ?string $sendKey = null;
    private ?string $receiveKey = null;
    private int $sent = 0;
    private int $received = 0;

    private bool $encrypted = false;

    /**
     * @param list<string>|null $sockets paths, `tcp://host:port` or `tls://host:port`, tried in this order; null: the usual places
     * @param string|null       $ca      PEM file of the certificates to trust over TLS; null: the system's
     */
    public function __construct(
        private ?array $sockets = null,
        #[\SensitiveParameter] private ?string $secret = null,
        private ?string $ca = null,
    ) {}

    /** @return list<string> where a hub's socket is looked for if none is configured */
    public static function usualSockets(): array
    {
        $uid = function_exists('posix_geteuid') ? posix_geteuid() : getmyuid();
        $runtime = getenv('XDG_RUNTIME_DIR') ?: (is_dir("/run/user/$uid") ? "/run/user/$uid" : null);

        return array_values(array_filter([
            '/run/realtime/realtime.sock',
            $runtime === null ? null : "$runtime/realtime/realtime.sock",
            "/tmp/realtime-$uid/realtime.sock",
        ]));
    }

    /** @return list<string> what a setting names: paths, `tcp://host:port` and `tls://host:port`, with commas between */
    public static function addresses(string $sockets): array
    {
        return array_values(array_filter(array_map('trim', explode(',', $sockets)), 'strlen'));
    }

    public function publish(array $publications): array
    {
        $receipts = [];
        foreach (array_chunk($publications, self::MAX_BATCH) as $part) {
            $frames = [];
            foreach ($part as $publication) {
                $frames[$request = $this->nextRequest()] = self::frame(self::PUBLISH, pack('V', $request) . self::encode($publication));
            }
            $failure = null;
            foreach ($this->exchange($frames) as $answer) {
                $answer instanceof RealtimeException ? $failure ??= $answer : $receipts[] = $answer;
            }
            if ($failure !== null) {
                throw $failure;
            }
        }

        return $receipts;
    }

    public function batch(array $publications): void
    {
        $part = [];
        $bytes = 0;
        foreach ($publications as $publication) {
            $entry = self::encode($publication);
            if (count($part) === self::MAX_BATCH || $bytes + strlen($entry) > self::MAX_FRAME_BYTES / 2 && $part !== []) {
                $this->sendBatch($part);
                [$part, $bytes] = [[], 0];
            }
            $part[] = pack('V', strlen($entry)) . $entry;
            $bytes += strlen($entry) + 4;
        }
        $this->sendBatch($part);
    }

    public function channelUsers(string $channel): array
    {
        return array_map(
            fn (array $user) => ['id' => $user['id'], 'info' => $user['info'] ?? null, 'connections' => $user['connections']],
            $this->query(['op' => 'channel_users', 'channel' => $channel]),
        );
    }

    public function disconnectUser(string $userId, int $code, string $reason): int
    {
        return $this->query(['op' => 'disconnect_user', 'user' => $userId, 'code' => $code, 'reason' => $reason]);
    }

    public function channels(): array
    {
        return $this->query(['op' => 'channels']);
    }

    public function stats(): array
    {
        return $this->query(['op' => 'stats']);
    }

    public function describe(): string
    {
        return 'the bus at ' . implode(' or ', $this->sockets ?? self::usualSockets());
    }

    /**
     * Acknowledges the event with the number `$done`, and waits for the next one of those in `hooks.events`.
     *
     * @return array{number: int, attempt: int, dropped: int, event: array<string, mixed>}|null none came in time, or
     *                                                                                          within 400 ms
     *
     * @throws RealtimeException
     */
    public function nextEvent(int $timeoutMs, ?int $done): ?array
    {
        return $this->query(['op' => 'next_event', 'timeout_ms' => min($timeoutMs, self::EVENT_WAIT_MS), 'done' => $done]);
    }

    /**
     * Acknowledges an event and takes no other; false: this connection was not given it.
     *
     * @throws RealtimeException
     */
    public function eventDone(int $number): bool
    {
        return $this->query(['op' => 'event_done', 'number' => $number]);
    }

    private function query(array $query): mixed
    {
        $request = $this->nextRequest();
        $answer = $this->exchange([$request => self::frame(self::QUERY, pack('V', $request) . json_encode($query, JSON_THROW_ON_ERROR))])[$request];
        if ($answer instanceof RealtimeException) {
            throw $answer;
        }

        return json_decode($answer, true, 512, JSON_THROW_ON_ERROR);
    }

    private function sendBatch(array $entries): void
    {
        $request = $this->nextRequest();
        $frame = self::frame(self::BATCH, pack('VV', $request, count($entries)) . implode('', $entries));
        $answer = $this->exchange([$request => $frame])[$request];
        if ($answer instanceof RealtimeException) {
            throw $answer;
        }
    }

    private static function encode(Publication $publication): string
    {
        $text = fn (string $text) => strlen($text) <= 0xffff ? pack('v', strlen($text)) . $text : throw new InvalidMessage('a name has at most 65535 bytes, this one has ' . strlen($text));

        return chr($publication->kind | ($publication->id === null ? 0 : 4) | ($publication->toUser ? 8 : 0))
            . $text($publication->target)
            . $text($publication->event)
            . ($publication->id === null ? '' : $text($publication->id))
            . chr(count($publication->except)) . implode('', array_map([SocketId::class, 'pack'], $publication->except))
            . $publication->body;
    }

    private static function frame(int $kind, string $fields): string
    {
        $length = strlen($fields) + 1;
        if ($length > self::MAX_FRAME_BYTES) {
            throw new MessageTooLarge("a frame of the bus has at most " . self::MAX_FRAME_BYTES . " bytes, this one would have $length");
        }

        return pack('VC', $length, $kind) . $fields;
    }

    private function nextRequest(): int
    {
        return $this->request = $this->request % 0x7fffffff + 1;
    }

    /**
     * Sends frames and waits for an answer to each.
     *
     * @param array<int, string> $frames by request
     *
     * @return array<int, Receipt|string|RealtimeException> by request, in the order asked
     */
    private function exchange(array $frames): array
    {
        $now = microtime(true);
        if ($now < $this->silentUntil) {
            throw new Unavailable('the hub did not answer in time a moment ago; it is asked again in ' . ceil(($this->silentUntil - $now) * 1000) . ' ms');
        }
        $deadline = $now + self::CALL_S;
        $kept = $this->isConnected();
        $kept || $this->connect($deadline);
        $out = $this->seal($frames);
        $answers = [];
        $parts = [];
        $sent = 0;
        while (count($answers) < count($frames)) {
            if ($sent < strlen($out)) {
                $written = @fwrite($this->stream, match (true) {
                    $this->encrypted => substr($out, $sent, self::RECORD_BYTES),
                    default => $sent === 0 ? $out : substr($out, $sent, 1 << 16),
                });
                if ($written === false && $kept && $sent === 0) {
                    // The hub closed a connection that was idle: nothing of this call has reached it.
                    $this->connect($deadline);
                    $out = $this->seal($frames);
                    $kept = false;
                    continue;
                }
                if ($written === false) {
                    throw $this->lost();
                }
                $sent += $written;
            }
            $this->wait($deadline, $sent < strlen($out));
            foreach ($this->receive() as [$kind, $fields]) {
                $this->take($kind, $fields, $parts, $answers);
            }
        }

        return array_replace($frames, array_intersect_key($answers, $frames));
    }

    /** Files what one frame of the hub says. */
    private function take(int $kind, string $fields, array &$parts, array &$answers): void
    {
        if ($kind === self::WELCOME) {
            return;
        }
        $request = strlen($fields) >= 4 ? unpack('V', $fields)[1] : throw $this->broken('a frame of the hub is too short');
        switch ($kind) {
            case self::RECEIPT:
                if (strlen($fields) !== 24) {
                    throw $this->broken('a receipt has the wrong length');
                }
                ['epoch' => $epoch, 'offset' => $offset, 'matched' => $matched] = unpack('Pepoch/Poffset/Vmatched', $fields, 4);
                $answers[$request] = new Receipt(true, sprintf('%016x', $epoch), $offset, $matched);
                break;
            case self::FAILURE:
                [$code, $message] = [ord($fields[4] ?? "\0"), substr($fields, 7)];
                if ($request === 0) {
                    $this->close();
                    throw self::failure($code, $message);
                }
                // A hub that cannot do what it is asked now will not be able to later.
                $answers[$request] = $code === 8 ? new ConfigError($message) : self::failure($code, $message);
                break;
            case self::ANSWER:
                $parts[$request] = ($parts[$request] ?? '') . substr($fields, 5);
                if (strlen($parts[$request]) > self::MAX_ANSWER_BYTES) {
                    throw $this->broken('an answer passes ' . self::MAX_ANSWER_BYTES . ' bytes');
                }
                if (ord($fields[4] ?? "\0") === 0) {
                    $answers[$request] = $parts[$request];
                }
                break;
            default:
                throw $this->broken("unknown frame of kind $kind");
        }
    }

    private static function failure(int $code, string $message): RealtimeException
    {
        return match ($code) {
            1 => new InvalidChannel($message),
            2 => new InvalidMessage($message),
            3 => new MessageTooLarge($message),
            4 => new QueueFull($message),
            6 => new Unauthorized($message),
            7 => new Timeout($message),
            default => new Unavailable($message),
        };
    }

    /** The whole frames that have come. @return list<array{int, string}> kind and fields */
    private function receive(): array
    {
        $bytes = fread($this->stream, 1 << 16);
        if ($bytes === false || $bytes === '' && feof($this->stream)) {
            throw $this->lost();
        }
        $this->partial .= $bytes;
        $frames = [];
        $at = 0;
        while (strlen($this->partial) - $at >= 4) {
            $length = unpack('V', $this->partial, $at)[1];
            if ($length === 0 || $length > self::MAX_FRAME_BYTES) {
                throw $this->broken("a frame declares $length bytes");
            }
            $tag = $this->receiveKey === null ? 0 : self::TAG_BYTES;
            if (strlen($this->partial) - $at - 4 < $length + $tag) {
                break;
            }
            if ($tag > 0 && !hash_equals(self::tag($this->receiveKey, $this->received++, substr($this->partial, $at, 4 + $length)), substr($this->partial, $at + 4 + $length, $tag))) {
                throw $this->broken('a frame was changed on the way');
            }
            $frames[] = [ord($this->partial[$at + 4]), substr($this->partial, $at + 5, $length - 1)];
            $at += 4 + $length + $tag;
        }
        $this->partial = substr($this->partial, $at);

        return $frames;
    }

    private function wait(float $deadline, bool $toWrite): void
    {
        $left = $deadline - microtime(true);
        $read = [$this->stream];
        $write = $toWrite ? [$this->stream] : null;
        $none = null;
        // A signal that interrupts the call makes it return false with the time not yet over.
        while ($left > 0 && @stream_select($read, $write, $none, (int) $left, (int) (fmod($left, 1) * 1e6)) === false) {
            $left = $deadline - microtime(true);
            [$read, $write] = [[$this->stream], $toWrite ? [$this->stream] : null];
        }
        if ($left <= 0 || $read === [] && ($write ?? []) === []) {
            $this->close();
            $this->silentUntil = microtime(true) + self::RETRY_AFTER_S;
            throw new Timeout('the hub did not answer within ' . self::CALL_S * 1000 . ' ms');
        }
    }

    /** Whether there is a connection of this process' that the hub has not closed. */
    private function isConnected(): bool
    {
        if ($this->stream === null || $this->process !== getmypid()) {
            return false;
        }
        $read = [$this->stream];
        $none = null;
        // Between calls nothing is due, so what can be read then is the end, or what is left of a call that failed.
        if (@stream_select($read, $none, $none, 0) === 0) {
            return true;
        }

        // Over TLS it may be a word between its ends.
        return $this->encrypted && @fread($this->stream, 1) === '' && !feof($this->stream);
    }

    private function connect(float $deadline): void
    {
        $this->close();
        $tried = [];
        foreach ($this->sockets ?? self::usualSockets() as $address) {
            $overTls = str_starts_with($address, 'tls://');
            $overTcp = $overTls || str_starts_with($address, 'tcp://');
            if ($this->sockets === null && !self::isTrusted($address)) {
                $tried[] = "$address: " . (file_exists($address) ? 'belongs to another user' : 'no such file');
                continue;
            }
            $place = match (true) {
                $overTls => 'tcp' . substr($address, 3),
                $overTcp => $address,
                default => "unix://$address",
            };
            $stream = @stream_socket_client($place, $code, $message, self::CONNECT_S);
            if ($stream === false) {
                $tried[] = "$address: " . ($message ?: "error $code");
                continue;
            }
            stream_set_blocking($stream, false);
            stream_set_read_buffer($stream, 0);
            $this->stream = $stream;
            $this->process = getmypid();
            if ($overTls) {
                $this->encrypt($address, $deadline);
            }
            if ($overTcp) {
                $this->shakeHands($deadline);
            }
            // The hello waits for no welcome: the frames behind it come in the same breath.
            fwrite($stream, $this->seal([self::frame(self::HELLO, 'RTBS' . pack('vvV', self::VERSION, self::VERSION, $this->process))]));

            return;
        }
        throw new Unavailable('no hub answers: ' . ($tried === [] ? 'no socket is configured' : implode('; ', $tried)));
    }

    /** Shakes hands over TLS: the hub is who its certificate says, and whom this side trusts says so. */
    private function encrypt(string $address, float $deadline): void
    {
        if (!extension_loaded('openssl')) {
            $this->close();
            throw new ConfigError("$address needs PHP's extension openssl");
        }
        if ($this->ca !== null && !is_readable($this->ca)) {
            $this->close();
            throw new ConfigError("cannot read `$this->ca`, the file of whom to trust");
        }
        $ssl = ['peer_name' => trim(substr($address, 6, strrpos($address, ':') - 6), '[]'), 'verify_peer' => true, 'verify_peer_name' => true, 'allow_self_signed' => false];
        stream_context_set_option($this->stream, ['ssl' => $ssl + ($this->ca === null ? [] : ['cafile' => $this->ca])]);
        $said = '';
        set_error_handler(function (int $level, string $message) use (&$said) {
            $said = $said ?: trim(preg_replace('/^stream_socket_enable_crypto\(\): |\s+/', ' ', $message));

            return true;
        });
        try {
            while (($done = stream_socket_enable_crypto($this->stream, true, STREAM_CRYPTO_METHOD_TLS_CLIENT)) === 0) {
                $this->wait($deadline, false);
            }
        } finally {
            restore_error_handler();
        }
        if ($done !== true) {
            $this->close();
            throw new Unavailable("no TLS with $address: " . ($said ?: 'it hung up in the handshake; is its address tcp://?'));
        }
        $this->encrypted = true;
    }

    /** Both sides prove that they know the secret; frames carry tags from then on. */
    private function shakeHands(float $deadline): void
    {
        if (strlen((string) $this->secret) < self::MIN_SECRET_BYTES) {
            $this->close();
            throw new ConfigError('the bus over TCP needs the hub\'s secret of at least ' . self::MIN_SECRET_BYTES . ' bytes');
        }
        $nonce = random_bytes(self::NONCE_BYTES);
        fwrite($this->stream, self::frame(self::KNOCK, "RTBS$nonce"));
        do {
            $this->wait($deadline, false);
            $frames = $this->receive();
            // An alert; a frame that begins so would be longer than the challenge.
            if (str_starts_with($this->partial, "\x15\x03")) {
                throw $this->broken('it speaks TLS; is its address tls://?');
            }
        } while ($frames === []);
        [$kind, $fields] = $frames[0];
        if ($kind !== self::CHALLENGE || strlen($fields) !== self::NONCE_BYTES + 32) {
            throw $this->broken('it does not answer the knock');
        }
        $both = $nonce . substr($fields, 0, self::NONCE_BYTES);
        $derive = fn (string $label) => hash_hmac('sha256', "realtime bus 1 $label$both", $this->secret, true);
        if (!hash_equals($derive('hub    proof'), substr($fields, self::NONCE_BYTES))) {
            $this->close();
            throw new Unauthorized('what answers there does not know the secret, or this side has another one');
        }
        fwrite($this->stream, self::frame(self::PROOF, $derive('client proof')));
        [$this->sendKey, $this->receiveKey] = [$derive('client frame'), $derive('hub    frame')];
    }

    /** The frames as they go over this connection. @param array<string> $frames */
    private function seal(array $frames): string
    {
        if ($this->sendKey === null) {
            return implode('', $frames);
        }

        return implode('', array_map(fn (string $frame) => $frame . self::tag($this->sendKey, $this->sent++, $frame), $frames));
    }

    private static function tag(string $key, int $number, string $frame): string
    {
        return substr(hash_hmac('sha256', pack('P', $number) . $frame, $key, true), 0, self::TAG_BYTES);
    }

    /** Where everybody may make a socket, only root's and this user's are spoken to. */
    private static function isTrusted(string $path): bool
    {
        $owner = @fileowner($path);
        $own = function_exists('posix_geteuid') ? posix_geteuid() : getmyuid();

        return $owner !== false && (!str_starts_with($path, '/tmp/') || in_array($owner, [0, $own], true));
    }

    private function close(): void
    {
        if ($this->stream !== null && $this->process === getmypid()) {
            fclose($this->stream);
        }
        $this->stream = null;
        $this->partial = '';
        $this->sendKey = $this->receiveKey = null;
        $this->encrypted = false;
        $this->sent = $this->received = 0;
    }

    private function lost(): Unavailable
    {
        $this->close();

        return new Unavailable('the hub closed the connection before it answered');
    }

    private function broken(string $what): Unavailable
    {
        $this->close();

        return new Unavailable("what answers there does not speak the bus protocol: $what");
    }
}
