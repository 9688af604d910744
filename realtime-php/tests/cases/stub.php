<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Tests\Process;

use function Tests\{check, same, test};

/** Everything that reflection knows of the names below, as one comparable array. */
const DESCRIBE = <<<'PHP'
    function describe_function(ReflectionFunctionAbstract $function): array
    {
        $parameters = [];
        foreach ($function->getParameters() as $parameter) {
            $default = null;
            if ($parameter->isDefaultValueAvailable()) {
                $constant = $parameter->isDefaultValueConstant() ? $parameter->getDefaultValueConstantName() : null;
                // The stub's mark for "optional without a default".
                $default = $constant !== null && str_ends_with($constant, 'UNKNOWN') ? null : var_export($parameter->getDefaultValue(), true);
            }
            $parameters[] = [$parameter->getName(), describe_type($parameter->getType()), $parameter->isOptional(), $default, $parameter->isPassedByReference(), $parameter->isVariadic()];
        }
        return ['parameters' => $parameters, 'returns' => describe_type($function->getReturnType())];
    }

    function describe_type(?ReflectionType $type): string
    {
        $parts = explode('|', (string) $type);
        sort($parts);
        return implode('|', $parts);
    }

    function describe(array $functions, array $classes): array
    {
        $all = [];
        foreach ($functions as $name) {
            $all["$name()"] = describe_function(new ReflectionFunction($name));
        }
        foreach ($classes as $name) {
            $class = new ReflectionClass($name);
            $entry = ['final' => $class->isFinal(), 'abstract' => $class->isAbstract(), 'parent' => $class->getParentClass() ? $class->getParentClass()->getName() : null];
            foreach ($class->getMethods() as $method) {
                if ($method->getDeclaringClass()->getName() === $class->getName()) {
                    $entry['methods'][$method->getName()] = ['modifiers' => Reflection::getModifierNames($method->getModifiers())] + describe_function($method);
                }
            }
            foreach ($class->getProperties() as $property) {
                if ($property->getDeclaringClass()->getName() === $class->getName()) {
                    $entry['properties'][$property->getName()] = [Reflection::getModifierNames($property->getModifiers()), describe_type($property->getType())];
                }
            }
            $all[$name] = $entry;
        }
        ksort($all);
        return $all;
    }
    PHP;

eval(DESCRIBE);

$extension = new ReflectionExtension('realtime');
$ofExtension = describe(array_map(fn ($f) => $f->getName(), array_values($extension->getFunctions())), array_keys($extension->getClasses()));

$stub = dirname(__DIR__, 2) . '/realtime.stub.php';
$code = DESCRIBE . <<<'PHP'
    $classes = get_declared_classes();
    $functions = get_defined_functions()['user'];
    require $argv[1];
    $functions = array_map(fn ($f) => (new ReflectionFunction($f))->getName(), array_diff(get_defined_functions()['user'], $functions));
    echo json_encode(describe($functions, array_values(array_diff(get_declared_classes(), $classes))));
    PHP;
$ofStub = json_decode((new Process([PHP_BINARY, '-n', '-r', $code, '--', $stub]))->output(), true, flags: JSON_THROW_ON_ERROR);

test('the stub declares exactly what the extension has', function () use ($ofExtension, $ofStub) {
    same(array_keys($ofExtension), array_keys($ofStub));
});

foreach ($ofExtension as $name => $description) {
    test("the stub of $name has the extension's names, types and defaults", function () use ($description, $ofStub, $name) {
        same(json_encode($description), json_encode($ofStub[$name] ?? null));
    });
}

test('everything in the stub is documented', function () use ($stub) {
    $tokens = array_values(array_filter(PhpToken::tokenize(file_get_contents($stub)), fn ($token) => !$token->is(T_WHITESPACE)));
    foreach ($tokens as $index => $token) {
        if (!$token->is(T_FUNCTION) || $tokens[$index + 1]->is('__construct')) {
            continue;
        }
        $before = $index - 1;
        while ($tokens[$before]->is([T_PUBLIC, T_STATIC, T_FINAL])) {
            $before--;
        }
        $name = $tokens[$index + 1]->text;
        // Overrides inherit theirs.
        check($tokens[$before]->is(T_DOC_COMMENT) || $name === 'isRetryable', "$name() has no docblock");
    }
});
