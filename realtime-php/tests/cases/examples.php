<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Tests\Process;

use function Tests\{check, contains, same, test};

$examples = getenv('TEST_ROOT') . '/php-examples';

/** What each lesson must print, as a pattern. */
const EXPECTED = [
    '01-hello/hello.php' => '~^\{"type":"message","channel":"news","event":"message","data":\{"title":"Hello","rating":5\.0\},"offset":1\}\n\{.*"event":"note","data":"plain text stays plain text","offset":2\}\n$~',
    '02-users/users.php' => '~^Ada \(user 42\) is here with 2 connections\nlaptop: .*only for you.*\nphone:  .*only for you.*\nphone:  .*Ada typed this.*\nguest:  .*Ada typed this.*\nclosed: 2\nlaptop: gone\n$~',
    '03-binary/binary.php' => '~^refused: .*not valid UTF-8.*\n\{.*"event":"frame","offset":1\} and 1008 bytes, the same\n\{.*"data":\{"width":640,"height":480\}.*\}\n$~',
    '04-testing/test.php' => '~^2 messages recorded, every assertion holds\nand one that does not: Nothing was broadcast on channel \[orders\.43\]\.\n$~',
];

foreach (EXPECTED as $file => $pattern) {
    test("php-examples/$file shows what it promises", function () use ($examples, $file, $pattern) {
        $output = (new Process([PHP_BINARY, ...Tests\php_options(), "$examples/$file"]))->output();
        check(preg_match($pattern, $output) === 1, $output);
    });

    test("php-examples/$file has a README with its command", function () use ($examples, $file) {
        contains("php-examples/$file", file_get_contents("$examples/" . dirname($file) . '/README.md'));
    });
}

test('every lesson is tested', function () use ($examples) {
    same(array_map('dirname', array_keys(EXPECTED)), array_map('basename', glob("$examples/[0-9]*", GLOB_ONLYDIR)));
});
