<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\ConfigError;

use function Tests\{check, contains, free_port, php, same, test, throws};

const START = "echo Realtime\\start()->url;";

test('INI settings have their defaults and belong to the system', function () {
    $settings = ini_get_all('realtime');
    same(
        [
            'realtime.app' => '', 'realtime.autospawn' => '0', 'realtime.binary' => '', 'realtime.broker.ca_file' => null, 'realtime.broker.prefix' => null, 'realtime.broker.url' => null,
            'realtime.config' => '', 'realtime.global_functions' => '1', 'realtime.linger_ms' => null, 'realtime.listen' => null, 'realtime.log' => null, 'realtime.mode' => 'auto', 'realtime.on_error' => 'log',
            'realtime.secret' => null, 'realtime.socket' => null, 'realtime.socket_ca' => null,
        ],
        array_map(fn ($setting) => $setting['global_value'], $settings),
    );
    same([INI_SYSTEM], array_values(array_unique(array_column($settings, 'access'))));
    same(false, ini_set('realtime.mode', 'off'));
});

test('realtime.listen says where to listen', function () {
    $port = free_port();
    same("ws://127.0.0.1:$port/ws", php(START, ['-d', "realtime.listen=127.0.0.1:$port"])->output());
});

test('file < INI < environment < code', function () {
    [$inFile, $inIni, $inEnvironment, $inCode] = array_map(fn () => free_port(), range(1, 4));
    $file = tempnam(sys_get_temp_dir(), 'realtime');
    file_put_contents($file, "listen = \"127.0.0.1:$inFile\"\n");
    $options = ['-d', "realtime.config=$file"];
    contains(":$inFile/", php(START, $options)->output());
    array_push($options, '-d', "realtime.listen=127.0.0.1:$inIni");
    contains(":$inIni/", php(START, $options)->output());
    $environment = ['REALTIME_LISTEN' => "127.0.0.1:$inEnvironment"];
    contains(":$inEnvironment/", php(START, $options, $environment)->output());
    contains(":$inCode/", php("echo Realtime\\start(['listen' => '127.0.0.1:$inCode'])->url;", $options, $environment)->output());
    unlink($file);
});

test('the environment is that of the process start', function () {
    $port = free_port();
    contains(":$port/", php("putenv('REALTIME_LISTEN'); unset(\$_ENV['REALTIME_LISTEN']); " . START, [], ['REALTIME_LISTEN' => "127.0.0.1:$port"])->output());
});

test('an unknown variable is a warning, an unknown setting an error that suggests the nearest', function () {
    $process = php("Realtime\\start(['listen' => '127.0.0.1:0']);", [], ['REALTIME_SERVICE_PORT' => '80']);
    $process->output();
    contains('realtime: warning: ignored REALTIME_SERVICE_PORT', $process->errors());
    throws(ConfigError::class, '`lissten`, did you mean `listen`?', fn () => Realtime\start(['lissten' => 'x']));
    throws(ConfigError::class, '`limits.max_conections`, did you mean `limits.max_connections`?', fn () => Realtime\start(['limits' => ['max_conections' => 5]]));
});

test('values of the wrong kind are errors that name their setting', function () {
    throws(ConfigError::class, 'shards', fn () => Realtime\start(['shards' => 'many']));
    throws(ConfigError::class, '`limits.x`', fn () => Realtime\start(['limits' => ['x' => new stdClass()]]));
    throws(ConfigError::class, '`listen`: not valid UTF-8', fn () => Realtime\start(['listen' => "\xff"]));
    throws(ConfigError::class, 'auth.mode', fn () => Realtime\start(['listen' => '0.0.0.0:0']));
    $endless = [];
    $endless['limits'] = &$endless;
    throws(ConfigError::class, 'nested too deeply', fn () => Realtime\start($endless));
});

test('nested settings and lists reach the hub', function () {
    $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 1, 'auth' => ['mode' => ['none']], 'limits' => ['publication_bytes' => 10], 'channels' => [['match' => 'chat-*', 'client_events' => true]], 'allowed_origins' => []]);
    throws(Realtime\Exception\MessageTooLarge::class, 'limit is 10', fn () => Realtime\publish('a', '12345678901'));
    $hub->stop();
});

test('a file that is missing or wrong is a ConfigError', function () {
    php("throws(Realtime\\Exception\\ConfigError::class, '/nowhere.toml', fn () => Realtime\\start());", ['-d', 'realtime.config=/nowhere.toml'])->output();
    php("throws(Realtime\\Exception\\ConfigError::class, 'TOML', fn () => Realtime\\start());", ['-d', 'realtime.config=' . __FILE__])->output();
});

test('mode off checks arguments and drops everything', function () {
    $code = <<<'PHP'
        broadcast('a', 'x');
        broadcastToUser(1, 'x');
        same([[], 0, [], false], [getChannelUsers('a'), disconnectUser(1), Realtime\channels(), Realtime\publish('a', 'x')->accepted]);
        same([false, false], array_map(fn ($receipt) => $receipt->accepted, Realtime\publish(['a', 'b'], 'x')));
        throws(Realtime\Exception\InvalidChannel::class, '', fn () => Realtime\publish('', 'x'));
        throws(Realtime\Exception\InvalidMessage::class, '', fn () => broadcast('a', "\xff"));
        throws(Realtime\Exception\ConfigError::class, 'realtime.mode is off', fn () => Realtime\start());
        PHP;
    php($code, ['-d', 'realtime.mode=off'])->output();
    php($code, [], ['REALTIME_MODE' => 'off'])->output();
});

test('mode bus starts no hub, mode embedded looks for no other', function () {
    $code = <<<'PHP'
        throws(Realtime\Exception\Unavailable::class, 'there is none at', fn () => Realtime\publish('a', 'x'));
        throws(Realtime\Exception\ConfigError::class, 'realtime.mode is bus', fn () => Realtime\start());
        PHP;
    php($code, ['-d', 'realtime.mode=bus'])->output();
    $code = "throws(Realtime\\Exception\\Unavailable::class, 'realtime.mode is embedded', fn () => Realtime\\publish('a', 'x'));";
    php($code, ['-d', 'realtime.mode=embedded'])->output();
});

test('mode embedded starts like auto', function () {
    contains('ws://', php("echo Realtime\\start(['listen' => '127.0.0.1:0'])->url;", ['-d', 'realtime.mode=embedded'])->output());
});

test('settings that make no sense are errors, not guesses', function () {
    php("throws(Realtime\\Exception\\ConfigError::class, '`on`', fn () => Realtime\\start());", ['-d', 'realtime.mode="on"'])->output();
    php("throws(Realtime\\Exception\\ConfigError::class, 'realtime.on_error', fn () => broadcast('a', 'x'));", ['-d', 'realtime.on_error=ignore'])->output();
    php("throws(Realtime\\Exception\\ConfigError::class, 'realtime.app', fn () => Realtime\\start());", ['-d', 'realtime.app=shop'])->output();
    php("Realtime\\start(['listen' => '127.0.0.1:0']);", ['-d', 'realtime.app=default'])->output();
});

test('realtime.log has what a hub in the process says, refusals with their reason too', function () {
    $log = getenv('TEST_DIRECTORY') . '/hub.log';
    $code = <<<'PHP'
        $hub = Realtime\start(['listen' => '127.0.0.1:0']);
        $client = new Tests\Client($hub->url);
        $client->send(['action' => 'subscribe', 'channel' => 'private-x']);
        $client->next('error');
        $hub->stop();
        // The process has one log.
        throws(Realtime\Exception\ConfigError::class, 'a process has one log', fn () => Realtime\start(['listen' => '127.0.0.1:0', 'log' => '/nowhere']));
        $hub = Realtime\start(['listen' => '127.0.0.1:0', 'log_level' => 'error']);
        (new Tests\Client($hub->url, '/ws'))->send(['action' => 'subscribe', 'channel' => 'private-y']);
        $hub->stop();
        PHP;
    php($code, ['-d', "realtime.log=$log"])->output();
    $written = file_get_contents($log);
    contains('subscription refused', $written);
    contains('private-x', $written);
    check(!str_contains($written, 'private-y'), 'the level is the hub\'s');
    $code = "throws(Realtime\\Exception\\ConfigError::class, 'cannot open the log /nowhere/x', fn () => Realtime\\start(['listen' => '127.0.0.1:0']));";
    php($code, ['-d', 'realtime.log=/nowhere/x'])->output();
});

test('global_functions=0 leaves the global functions to others', function () {
    $code = <<<'PHP'
        use function Tests\check;
        foreach (['broadcastToUser', 'getChannelUsers', 'disconnectUser'] as $name) {
            check(!function_exists($name), $name);
        }
        function broadcast($x) { return "mine: $x"; }
        $hub = Realtime\start(['listen' => '127.0.0.1:0']);
        check(Realtime\publish('a', 'x')->accepted, 'publish() works');
        echo broadcast('x');
        PHP;
    $code = "eval(" . var_export($code, true) . ");";
    same('mine: x', php($code, ['-d', 'realtime.global_functions=0'])->output());
    same('mine: x', php($code, [], ['REALTIME_GLOBAL_FUNCTIONS' => '0'])->output());
});

test('off() drops what the rest of the request sends, and still checks it', function () {
    $code = <<<'PHP'
        $hub = Realtime\start(['listen' => '127.0.0.1:0']);
        $client = Tests\Client::subscribed($hub->url, 'a');
        broadcast('a', 'before');
        Realtime\off();
        broadcast('a', 'dropped');
        broadcast('a', ['dropped']);
        broadcastToUser(1, 'dropped');
        same([false, [], [], 0], [Realtime\publish('a', 'dropped')->accepted, Realtime\channels(), getChannelUsers('a'), disconnectUser(1)]);
        throws(Realtime\Exception\InvalidMessage::class, '', fn () => broadcast('a', "\xff"));
        throws(Realtime\Exception\ConfigError::class, 'off()', fn () => Realtime\start());
        same('before', $client->next()['data']);
        check($hub->stop(), 'the hub itself runs on and stops');
        same(1001, $client->closeCode());
        PHP;
    php($code)->output();
});

test('phpinfo() has a section that follows the hub', function () {
    $section = function (): string {
        ob_start();
        phpinfo(INFO_MODULES);
        return substr($text = ob_get_clean(), $at = strpos($text, "\nrealtime\n"), 900);
    };
    $before = $section();
    foreach (['realtime => enabled', 'Version => ' . phpversion('realtime'), "Role of this process => client of another process' hub", 'Listening => no', 'Bus socket => ' . getenv('REALTIME_SOCKET'), 'realtime.mode => auto => auto', 'realtime.on_error => log => log'] as $line) {
        contains($line, $before);
    }
    $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 2]);
    $client = Tests\Client::subscribed($hub->url, 'a', 'b');
    foreach (['Role of this process => embedded hub', "Listening => {$hub->url}", 'Connections => 1', 'Channels => 2'] as $line) {
        contains($line, $section());
    }
    $hub->stop();
    contains('Listening => no', $section());
});
